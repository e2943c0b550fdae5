// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
)

// blobsOf returns the URL that those of a repository's blobs begin with.
func blobsOf(ref fetcher.Ref) string { return strings.TrimSuffix(ref.URL, "/"+ref.Digest.String()) }

// TestWarm: what is done ahead, the first read does not do.
func TestWarm(t *testing.T) {
	want := map[string][2]string{ // requests of Warm, and of the first read
		"anonymous":           {"origin", "origin"},
		"anonymous bearer":    {"origin token", "origin"},
		"basic":               {"origin", "origin"},
		"bearer":              {"origin token", "origin"},
		"identity token":      {"origin token", "origin"},
		"basic and redirect":  {"origin", "origin storage"},
		"bearer and redirect": {"origin token", "origin storage"},
	}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, m.opts)
			o := newOpener(t, registry.Options{Credentials: m.cred})
			content := fetchertest.Content(1000, 1)
			ref := reg.AddBlob(repo, content)
			for i, wanted := range []string{want[m.name][0], ""} {
				reg.ResetLog()
				if err := o.Warm(t.Context(), blobsOf(ref)); err != nil {
					t.Fatal(err)
				}
				// An open repository can only be known by asking.
				if got := endpoints(reg.Log()); got != wanted && m.name != "anonymous" {
					t.Errorf("Warm for the %dth time sent %q, want %q", i+1, got, wanted)
				}
			}
			reg.ResetLog()
			fetchertest.Want(t, fetchertest.Open(t, o, ref), content, 0, 10)
			if got := endpoints(reg.Log()); got != want[m.name][1] {
				t.Errorf("the first read sent %q, want %q", got, want[m.name][1])
			}
		})
	}
}

// TestWarmStorage: where one repository's reads were sent to, a connection is
// opened for another's, without its token.
func TestWarmStorage(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true})
	o := newOpener(t, registry.Options{})
	content := fetchertest.Content(1000, 1)
	fetchertest.Want(t, fetchertest.Open(t, o, reg.AddBlob("first", content)), content, 0, 10)
	reg.ResetLog()
	if err := o.Warm(t.Context(), blobsOf(reg.AddBlob("second", content))); err != nil {
		t.Fatal(err)
	}
	log := reg.Log()
	slices.SortFunc(log, func(a, b fetchertest.Request) int { return strings.Compare(string(a.Endpoint), string(b.Endpoint)) })
	if got := endpoints(log); got != "storage token" {
		t.Fatalf("got requests %q", got)
	}
	if q := log[0]; q.Method != http.MethodHead || q.Path != "/" || q.Authorization != "" {
		t.Errorf("storage was asked %+v", q)
	}
}

func TestWarmRefused(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Username: "u", Password: "pa55word"})
	o := newOpener(t, registry.Options{Credentials: static{Username: "u", Password: "wrong"}})
	ref := reg.AddBlob(repo, fetchertest.Content(2000, 1))
	if err := o.Warm(t.Context(), blobsOf(ref)); err != nil {
		t.Errorf("got %v; whether the repository can be read is for a read to tell", err)
	}
	if err := readErr(t, fetchertest.Open(t, o, ref)); !errors.Is(err, fetcher.ErrUnauthorized) {
		t.Errorf("read: got %v, want ErrUnauthorized", err)
	}
	for _, bad := range []string{"", "file:///v2/r/blobs", "http://host/v2/../blobs", "http://" + reg.Host() + "/v2//blobs", "http://%zz"} {
		if err := o.Warm(t.Context(), bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	reg.Fault(fetchertest.Fault{Reset: true, Times: -1})
	if err := newOpener(t, registry.Options{}).Warm(t.Context(), blobsOf(ref)); !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("connection reset: got %v, want ErrTemporary", err)
	}
}

// TestSecondRepository: once a host has refused a request, none for another of
// its repositories needs to be.
func TestSecondRepository(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, m.opts)
			o := newOpener(t, registry.Options{Credentials: m.cred})
			content := fetchertest.Content(1000, 1)
			first, second := reg.AddBlob("first", content), reg.AddBlob("a/second", content)
			fetchertest.Want(t, fetchertest.Open(t, o, first), content, 0, 10)
			reg.ResetLog()
			fetchertest.Want(t, fetchertest.Open(t, o, second), content, 0, 10)
			want := map[fetchertest.Auth]string{fetchertest.Anonymous: "origin", fetchertest.Basic: "origin", fetchertest.Bearer: "token origin"}[m.opts.Auth]
			if m.opts.Redirect {
				want += " storage"
			}
			if got := endpoints(reg.Log()); got != want {
				t.Errorf("requests %q, want %q", got, want)
			}
		})
	}
}

// TestWrongGuess: where a token for the second repository is not to be had,
// since it needs none, its readers are served as if there had been no first.
func TestWrongGuess(t *testing.T) {
	content := fetchertest.Content(2000, 1)
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && r.URL.Query().Get("scope") == "repository:first:pull":
			_, _ = io.WriteString(w, `{"token":"x"}`)
		case r.URL.Path == "/token":
			http.Error(w, "no", http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, "/v2/first/") && r.Header.Get("Authorization") != "Bearer x":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+server.URL+`/token",scope="repository:first:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}
	}))
	t.Cleanup(server.Close)
	o := newOpener(t, registry.Options{})
	open := func(repo string) fetcher.Blob {
		dgst := digest.FromBytes(content)
		return fetchertest.Open(t, o, fetcher.Ref{
			URL: server.URL + "/v2/" + repo + "/blobs/" + dgst.String(), Digest: dgst, Size: int64(len(content)),
		})
	}
	fetchertest.Want(t, open("first"), content, 0, 10)
	second := open("second")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { fetchertest.Want(t, second, content, 0, 10) })
	}
	wg.Wait()
}
