// SPDX-License-Identifier: Apache-2.0

package http_test

import (
	"bytes"
	"context"
	"errors"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/http"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

func newOpener(t *testing.T, opts http.Options) *http.Opener {
	t.Helper()
	o := http.New(opts)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

func readErr(t *testing.T, b fetcher.Blob, off int64) error {
	t.Helper()
	n, err := b.ReadAt(t.Context(), make([]byte, 10), off)
	if err == nil || n == 10 {
		t.Fatalf("read at %d: got %d bytes and %v, want an error", off, n, err)
	}
	return err
}

// serve serves one file of net/http's own making under the URL that it
// returns.
func serve(t *testing.T, f *file) string {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s.URL + "/file"
}

// file is a file that may be replaced.
type file struct {
	now      atomic.Pointer[version]
	requests atomic.Int64
}

type version struct {
	content  []byte
	etag     string
	modified time.Time
}

func newFile(v version) *file {
	f := new(file)
	f.now.Store(&v)
	return f
}

func (f *file) ServeHTTP(w nethttp.ResponseWriter, r *nethttp.Request) {
	f.requests.Add(1)
	v := f.now.Load()
	if v.etag != "" {
		w.Header().Set("ETag", v.etag)
	}
	nethttp.ServeContent(w, r, "file.bin", v.modified, bytes.NewReader(v.content))
}

func TestBlob(t *testing.T) {
	for _, known := range []bool{true, false} {
		fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
			ref := fetcher.Ref{URL: serve(t, newFile(version{content, `"1"`, time.Unix(1, 0)}))}
			if known {
				ref.Size = int64(len(content))
			}
			return fetchertest.Open(t, newOpener(t, http.Options{}), ref)
		})
	}
}

// TestFaults wants each fault to fail one read with ErrTemporary and leave the
// next one well.
func TestFaults(t *testing.T) {
	for name, fault := range map[string]fetchertest.Fault{
		"429":           {Status: 429},
		"503":           {Status: 503},
		"reset":         {Reset: true, Times: 2}, // net/http repeats a request itself once
		"short body":    {Body: fetchertest.Short, After: 5},
		"cut body":      {Body: fetchertest.Cut, After: 5},
		"other range":   {ContentRange: "bytes 0-9/300000"},
		"no range":      {ContentRange: "rubbish"},
		"ignored range": {IgnoreRange: true},
		"hang":          {Hang: true},
		"stall":         {Body: fetchertest.Stall, After: 4},
	} {
		t.Run(name, func(t *testing.T) {
			for _, redirect := range []bool{false, true} {
				reg := fetchertest.NewRegistry(t, fetchertest.Options{Redirect: redirect})
				content := fetchertest.Content(300_000, 1)
				o := newOpener(t, http.Options{Timeouts: rangeget.Timeouts{HeaderTimeout: 100 * time.Millisecond, IdleTimeout: 100 * time.Millisecond}})
				b := fetchertest.Open(t, o, reg.AddBlob("r", content))
				fetchertest.Want(t, b, content, 0, 10)
				reg.Fault(fault)
				if err := readErr(t, b, 290_000); !errors.Is(err, fetcher.ErrTemporary) || strings.Contains(err.Error(), "Signature") {
					t.Errorf("got %v, want fetcher.ErrTemporary", err)
				}
				reg.ClearFaults()
				fetchertest.Want(t, b, content, 290_000, 10)
			}
		})
	}
}

func TestPermanentStatus(t *testing.T) {
	for status, class := range map[int]error{
		401: fetcher.ErrUnauthorized, 403: fetcher.ErrUnauthorized, 404: fetcher.ErrNotFound, 410: fetcher.ErrNotFound,
	} {
		reg := fetchertest.NewRegistry(t, fetchertest.Options{})
		b := fetchertest.Open(t, newOpener(t, http.Options{}), reg.AddBlob("r", fetchertest.Content(2000, 1)))
		reg.Fault(fetchertest.Fault{Status: status, Times: -1})
		if err := readErr(t, b, 0); !errors.Is(err, class) || errors.Is(err, fetcher.ErrTemporary) {
			t.Errorf("status %d: got %v, want %v", status, err, class)
		}
	}
}

// TestReplacedFile: what tells a new version differs between servers; a read
// never mixes the two, whatever it is, and keeps failing.
func TestReplacedFile(t *testing.T) {
	old, other := fetchertest.Content(50_000, 1), fetchertest.Content(50_000, 2)
	early, late := time.Unix(1000, 0), time.Unix(2000, 0)
	for name, versions := range map[string][2]version{
		"etag":          {{old, `"1"`, early}, {other, `"2"`, early}},
		"last modified": {{old, "", early}, {other, "", late}},
		"weak etag":     {{old, `W/"1"`, early}, {other, `W/"1"`, late}},
		"tag lost":      {{old, `"1"`, early}, {other, "", early}},
		"size":          {{old, "", time.Time{}}, {other[:40_000], "", time.Time{}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFile(versions[0])
			b := fetchertest.Open(t, newOpener(t, http.Options{}), fetcher.Ref{URL: serve(t, f), Size: int64(len(old))})
			fetchertest.Want(t, b, old, 20_000, 10)
			f.now.Store(&versions[1])
			for range 2 {
				err := readErr(t, b, 30_000)
				if errors.Is(err, fetcher.ErrTemporary) || !strings.Contains(err.Error(), "changed") && !strings.Contains(err.Error(), "has 40000 bytes") {
					t.Errorf("got %v, want a word about the change", err)
				}
			}
			f.now.Store(&versions[0])
			fetchertest.Want(t, b, old, 30_000, 10)
		})
	}
}

func TestSizeOfAnotherFile(t *testing.T) {
	content := fetchertest.Content(5000, 1)
	ref := fetcher.Ref{URL: serve(t, newFile(version{content, `"1"`, time.Time{}})), Size: 5001}
	if err := readErr(t, fetchertest.Open(t, newOpener(t, http.Options{}), ref), 0); !strings.Contains(err.Error(), "has 5000 bytes under that name, not 5001") {
		t.Errorf("got %v", err)
	}
}

func TestOpenSendsNothing(t *testing.T) {
	f := newFile(version{content: make([]byte, 100)})
	o := newOpener(t, http.Options{})
	url := serve(t, f)
	fetchertest.Open(t, o, fetcher.Ref{URL: url, Size: 100})
	if n := f.requests.Load(); n != 0 {
		t.Errorf("%d requests to open a file of known size", n)
	}
	if b := fetchertest.Open(t, o, fetcher.Ref{URL: url}); b.Size() != 100 || f.requests.Load() != 1 {
		t.Errorf("size %d after %d requests", b.Size(), f.requests.Load())
	}
}

// one is the same credential for every URL.
type one fetcher.Credential

func (o one) Lookup(context.Context, string) (fetcher.Credential, error) {
	return fetcher.Credential(o), nil
}

// TestCredentialStaysAtItsHost: the second host of the test's registry refuses
// whoever shows it an authorization.
func TestCredentialStaysAtItsHost(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Basic, Username: "u", Password: "p", Redirect: true})
	content := fetchertest.Content(2000, 1)
	b := fetchertest.Open(t, newOpener(t, http.Options{Credentials: one{Username: "u", Password: "p"}}), reg.AddBlob("r", content))
	fetchertest.Want(t, b, content, 0, 10)
	reg.ExpireRedirects()
	fetchertest.Want(t, b, content, 1000, 10)
	for _, q := range reg.Log() {
		if (q.Authorization != "") != (q.Endpoint == fetchertest.Origin) {
			t.Errorf("%s was shown %q", q.Endpoint, q.Authorization)
		}
	}
	reg = fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Basic, Username: "u", Password: "p"})
	b = fetchertest.Open(t, newOpener(t, http.Options{}), reg.AddBlob("r", content))
	if err := readErr(t, b, 0); !errors.Is(err, fetcher.ErrUnauthorized) {
		t.Errorf("without a credential: %v", err)
	}
}

func TestBadURL(t *testing.T) {
	for url, says := range map[string]string{
		"s3://bucket/key":          `"s3" is neither`,
		"https:///key":             "no host",
		"https://u:s3cr3t@host/k":  "password in it",
		"https://host/%zz?s3cr3t=": "cannot be parsed",
	} {
		_, err := newOpener(t, http.Options{}).Open(t.Context(), fetcher.Ref{URL: url, Size: 1})
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: got %v; want %q", url, err, says)
		}
	}
}
