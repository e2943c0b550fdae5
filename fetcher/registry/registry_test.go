// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"io/fs"
	"net/http/httptrace"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
)

const repo = "library/redis"

// static is one credential for every repository.
type static fetcher.Credential

func (s static) Lookup(context.Context, string) (fetcher.Credential, error) {
	return fetcher.Credential(s), nil
}

func newOpener(t *testing.T, opts registry.Options) *registry.Opener {
	t.Helper()
	o := registry.New(opts)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

// readErr returns the error of reading ten bytes at 1000, which must show
// neither secrets nor signatures.
func readErr(t *testing.T, b fetcher.Blob) error {
	t.Helper()
	_, err := b.ReadAt(t.Context(), make([]byte, 10), 1000)
	noSecrets(t, err)
	return err
}

func noSecrets(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, secret := range []string{"s3cr3t", "Signature", "pa55word", "Bearer", "Basic"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("error %q shows %s", err, secret)
		}
	}
}

// endpoints returns which servers the requests of the log went to.
func endpoints(log []fetchertest.Request) string {
	var b strings.Builder
	for _, q := range log {
		b.WriteString(string(q.Endpoint) + " ")
	}
	return strings.TrimSpace(b.String())
}

var modes = []struct {
	name string
	opts fetchertest.Options
	cred static
}{
	{"anonymous", fetchertest.Options{}, static{}},
	{"anonymous bearer", fetchertest.Options{Auth: fetchertest.Bearer}, static{}},
	{"basic", fetchertest.Options{Auth: fetchertest.Basic, Username: "u", Password: "pa55word"}, static{Username: "u", Password: "pa55word"}},
	{"bearer", fetchertest.Options{Auth: fetchertest.Bearer, Username: "u", Password: "pa55word"}, static{Username: "u", Password: "pa55word"}},
	{"identity token", fetchertest.Options{Auth: fetchertest.Bearer, Username: "u", Password: "pa55word"}, static{IdentityToken: "pa55word"}},
	{"basic and redirect", fetchertest.Options{Auth: fetchertest.Basic, Username: "u", Password: "pa55word", Redirect: true}, static{Username: "u", Password: "pa55word"}},
	{"bearer and redirect", fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true}, static{}},
}

func TestBlob(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, m.opts)
			o := newOpener(t, registry.Options{Credentials: m.cred})
			fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
				return fetchertest.Open(t, o, reg.AddBlob(repo, content))
			})
		})
	}
}

func TestWarmReadIsOneRequest(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, m.opts)
			o := newOpener(t, registry.Options{Credentials: m.cred})
			content := fetchertest.Content(10_000, 1)
			b := fetchertest.Open(t, o, reg.AddBlob(repo, content))
			if n := len(reg.Log()); n != 0 {
				t.Errorf("opening a blob of known size sent %d requests", n)
			}
			fetchertest.Want(t, b, content, 0, 10)
			reg.ResetLog()
			fetchertest.Want(t, b, content, 5000, 100)
			log := reg.Log()
			if len(log) != 1 || log[0].Off != 5000 || log[0].N != 100 {
				t.Errorf("got %d requests: %+v; want one for 100 bytes at 5000", len(log), log)
			}
			second := fetchertest.Content(5000, 2)
			reg.ResetLog()
			fetchertest.Want(t, fetchertest.Open(t, o, reg.AddBlob(repo, second)), second, 0, 10)
			if got := endpoints(reg.Log()); got != "origin" && got != "origin storage" {
				t.Errorf("a second blob of the repository: got requests %q, want no authorization of its own", got)
			}
		})
	}
}

// TestReopenedBlobIsReadByOneRequest: what one reader has found out is known
// to the next, until it is refused.
func TestReopenedBlobIsReadByOneRequest(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, m.opts)
			o := newOpener(t, registry.Options{Credentials: m.cred})
			content := fetchertest.Content(10_000, 1)
			ref := reg.AddBlob(repo, content)
			first := fetchertest.Open(t, o, ref)
			fetchertest.Want(t, first, content, 0, 10)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			reg.ResetLog()
			second := fetchertest.Open(t, o, ref)
			fetchertest.Want(t, second, content, 0, 10)
			if n := len(reg.Log()); n != 1 {
				t.Errorf("%d requests, want one", n)
			}
			if !m.opts.Redirect {
				return
			}
			reg.ExpireRedirects()
			third := fetchertest.Open(t, o, ref)
			fetchertest.Want(t, third, content, 0, 10)
			reg.ResetLog()
			fetchertest.Want(t, second, content, 0, 10)
			if got := endpoints(reg.Log()); got != "storage" {
				t.Errorf("after another reader was redirected anew: got requests %q", got)
			}
		})
	}
}

// TestIdleConnectionsAreUsed: the first reads of many blobs go over the
// connections that there are, to the storage too.
func TestIdleConnectionsAreUsed(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true})
	o := newOpener(t, registry.Options{})
	var fresh atomic.Int32
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if !i.Reused {
			fresh.Add(1)
		}
	}})
	for i := range 20 {
		content := fetchertest.Content(300_000, uint64(i))
		b := fetchertest.Open(t, o, reg.AddBlob(repo, content))
		if _, err := b.ReadAt(ctx, make([]byte, 100_000), 1000); err != nil {
			t.Fatal(err)
		}
	}
	if n := fresh.Load(); n != 2 {
		t.Errorf("%d connections were made for 20 blobs, want one to the registry and one to its storage", n)
	}
}

func TestAuthorizationIsNotShownToRedirectHost(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true})
	content := fetchertest.Content(1000, 1)
	fetchertest.Want(t, fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, content)), content, 0, 10)
	for _, q := range reg.Log() {
		if q.Endpoint == fetchertest.Storage && (q.Authorization != "" || len(q.Header["Referer"]) > 0) {
			t.Errorf("redirect host was sent %v", q.Header)
		}
	}
	if got := endpoints(reg.Log()); got != "origin token origin storage" {
		t.Errorf("got requests %q", got)
	}
}

func TestSizeUnknown(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, m.opts)
			o := newOpener(t, registry.Options{Credentials: m.cred})
			for _, content := range [][]byte{fetchertest.Content(12_345, 1), nil} {
				ref := reg.AddBlob(repo, content)
				ref.Size = 0
				if got := fetchertest.Open(t, o, ref).Size(); got != int64(len(content)) {
					t.Errorf("Size() = %d, want %d", got, len(content))
				}
			}
		})
	}
}

func TestWrongCredentials(t *testing.T) {
	for _, m := range modes {
		if m.opts.Username == "" {
			continue
		}
		for name, cred := range map[string]static{"wrong": {Username: "u", Password: "other"}, "none": {}} {
			t.Run(m.name+" "+name, func(t *testing.T) {
				reg := fetchertest.NewRegistry(t, m.opts)
				o := newOpener(t, registry.Options{Credentials: cred})
				err := readErr(t, fetchertest.Open(t, o, reg.AddBlob(repo, fetchertest.Content(2000, 1))))
				if !errors.Is(err, fetcher.ErrUnauthorized) || errors.Is(err, fetcher.ErrTemporary) {
					t.Errorf("got %v, want fetcher.ErrUnauthorized", err)
				}
				if n := len(reg.Log()); n > 3 {
					t.Errorf("took %d requests to give up", n)
				}
			})
		}
	}
}

func TestMissingBlob(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer})
	ref := reg.AddBlob(repo, fetchertest.Content(2000, 1))
	ref.URL = strings.Replace(ref.URL, repo, "library/other", 1)
	o := newOpener(t, registry.Options{})
	if err := readErr(t, fetchertest.Open(t, o, ref)); !errors.Is(err, fetcher.ErrNotFound) {
		t.Errorf("read: got %v, want fetcher.ErrNotFound", err)
	}
	ref.Size = 0
	if _, err := o.Open(t.Context(), ref); !errors.Is(err, fetcher.ErrNotFound) {
		t.Errorf("open: got %v, want fetcher.ErrNotFound", err)
	}
}

func TestRefLongerThanBlobIsNotFound(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	ref := reg.AddBlob(repo, fetchertest.Content(500, 1))
	ref.Size = 2000
	if err := readErr(t, fetchertest.Open(t, newOpener(t, registry.Options{}), ref)); !errors.Is(err, fetcher.ErrNotFound) {
		t.Errorf("got %v, want fetcher.ErrNotFound", err)
	}
}

func TestTokenExpiresMidway(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Username: "u", Password: "pa55word"})
	content := fetchertest.Content(2000, 1)
	o := newOpener(t, registry.Options{Credentials: static{Username: "u", Password: "pa55word"}})
	b := fetchertest.Open(t, o, reg.AddBlob(repo, content))
	fetchertest.Want(t, b, content, 0, 10)
	reg.ExpireTokens()
	reg.ResetLog()
	fetchertest.Want(t, b, content, 1000, 10)
	if got := endpoints(reg.Log()); got != "origin token origin" {
		t.Errorf("got requests %q", got)
	}
}

func TestTokenServiceInTrouble(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer})
	content := fetchertest.Content(2000, 1)
	b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, content))
	reg.Fault(fetchertest.Fault{At: fetchertest.Token, Status: 503, RetryAfter: "3"})
	err := readErr(t, b)
	var ra *fetcher.RetryAfterError
	if !errors.As(err, &ra) || ra.After != 3*time.Second {
		t.Errorf("got %v, want fetcher.ErrTemporary after 3 s", err)
	}
	fetchertest.Want(t, b, content, 0, 10)
}

func TestCancelAndClose(t *testing.T) {
	for name, fault := range map[string]fetchertest.Fault{
		"before the header": {Hang: true},
		"in the body":       {Body: fetchertest.Stall, After: 4},
	} {
		for what, wantErr := range map[string]error{"cancel": context.Canceled, "close": fs.ErrClosed} {
			t.Run(what+" "+name, func(t *testing.T) {
				reg := fetchertest.NewRegistry(t, fetchertest.Options{})
				b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, fetchertest.Content(2000, 1)))
				reg.Fault(fault)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := make(chan error, 1)
				go func() {
					_, err := b.ReadAt(ctx, make([]byte, 10), 1000)
					got <- err
				}()
				if err := reg.Await(t.Context(), fetchertest.Origin, 1); err != nil {
					t.Fatal(err)
				}
				if what == "cancel" {
					cancel()
				} else {
					_ = b.Close()
				}
				if err := <-got; !errors.Is(err, wantErr) || errors.Is(err, fetcher.ErrTemporary) {
					t.Errorf("got %v, want %v", err, wantErr)
				}
			})
		}
	}
}

func TestBadRefs(t *testing.T) {
	dgst := "sha256:" + strings.Repeat("a", 64)
	o := newOpener(t, registry.Options{})
	for name, ref := range map[string]fetcher.Ref{
		"scheme":       {URL: "ftp://host/v2/a/blobs/" + dgst},
		"host":         {URL: "https:///v2/a/blobs/" + dgst},
		"host climbs":  {URL: "https://../v2/a/blobs/" + dgst},
		"no blob":      {URL: "https://host/v2/a/manifests/" + dgst},
		"no version":   {URL: "https://host/a/blobs/" + dgst},
		"path climbs":  {URL: "https://host/v2/../a/blobs/" + dgst},
		"digest":       {URL: "https://host/v2/a/blobs/sha256:12"},
		"other digest": {URL: "https://host/v2/a/blobs/" + dgst, Digest: "sha256:12"},
		"no mirror":    {URL: "https://host/v2/a/blobs/" + dgst + "?ns=other"},
		"unparsable":   {URL: "https://u:pa55word@host/%zz"},
	} {
		ref.Size = 1
		_, err := o.Open(t.Context(), ref)
		if err == nil {
			t.Errorf("%s: opened %s", name, ref.URL)
		}
		noSecrets(t, err)
	}
}

func TestClosedOpener(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer})
	ref := reg.AddBlob(repo, fetchertest.Content(2000, 1))
	o := newOpener(t, registry.Options{})
	b := fetchertest.Open(t, o, ref)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Open(t.Context(), ref); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("open: got %v, want fs.ErrClosed", err)
	}
	if err := readErr(t, b); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read that needs a token: got %v, want fs.ErrClosed", err)
	}
}

func TestCloseReleasesGoroutines(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, m.opts)
			o := registry.New(registry.Options{Credentials: m.cred})
			content := fetchertest.Content(2000, 1)
			b := fetchertest.Open(t, o, reg.AddBlob(repo, content))
			fetchertest.Want(t, b, content, 0, 10)
			if _, err := fetcher.ReadRange(t.Context(), b, 0, 1000); err != nil { // left open
				t.Fatal(err)
			}
			if err := errors.Join(b.Close(), o.Close()); err != nil {
				t.Fatal(err)
			}
			for clientGoroutines() > 0 { // they end in their own time, or the test does
				runtime.Gosched()
			}
		})
	}
}

// clientGoroutines counts the goroutines of client connections.
func clientGoroutines() int {
	buf := make([]byte, 1<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "net/http.(*persistConn).readLoop(")
}
