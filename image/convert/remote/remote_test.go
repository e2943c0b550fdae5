// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
	"github.com/overlaybd-go/overlaybd/image/convert/remote"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// quick retries as often, but sooner.
var quick = retry.Options{Budget: 20 * time.Second, First: time.Millisecond, Longest: 10 * time.Millisecond}

// A front is a proxy before docker-registry that spoils what it is told to,
// and notes what it was asked.
type front struct {
	host string

	mu    sync.Mutex
	spoil func(w http.ResponseWriter, r *http.Request, nth int) bool // reports that it has answered; nth counts the method
	seen  map[string]int
	log   []string // "METHOD n", n the length of the body
}

func newFront(t *testing.T) *front {
	t.Helper()
	back := e2e.StartRegistry(t)
	f := &front{seen: map[string]int{}}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", back.Host, p.In.Host
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.seen[r.Method]++
		nth, spoil := f.seen[r.Method], f.spoil
		f.log = append(f.log, fmt.Sprint(r.Method, " ", r.ContentLength))
		f.mu.Unlock()
		if spoil == nil || !spoil(w, r, nth) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	f.host = strings.TrimPrefix(server.URL, "http://")
	return f
}

// on sets what is spoilt from now on.
func (f *front) on(spoil func(w http.ResponseWriter, r *http.Request, nth int) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoil, f.log = spoil, nil
	clear(f.seen)
}

func (f *front) requests(method string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[method]
}

// sent returns the sum of the bodies of a method's requests.
func (f *front) sent(method string) (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, line := range f.log {
		var m string
		var size int64
		if _, err := fmt.Sscan(line, &m, &size); err == nil && m == method {
			n += max(size, 0)
		}
	}
	return n
}

func newClient(t *testing.T, opts remote.Options) *remote.Client {
	t.Helper()
	opts.Retry = quick
	c := remote.New(opts)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func target(t *testing.T, c *remote.Client, ref string) *remote.Repository {
	t.Helper()
	parsed, err := store.ParseRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Target(t.Context(), parsed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func blob(n int, seed byte) ([]byte, ocispec.Descriptor) {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(p), Size: int64(n)}
}

// want asserts that the repository has the blob.
func want(t *testing.T, r *remote.Repository, content []byte, desc ocispec.Descriptor) {
	t.Helper()
	s, err := r.Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(content))
	}
}

const mib = 1 << 20

func TestImage(t *testing.T) {
	f := newFront(t)
	c := newClient(t, remote.Options{ChunkSize: mib})
	r := target(t, c, f.host+"/a/b:v1")
	ctx := t.Context()

	if _, err := r.Resolve(ctx); !errdefs.IsNotFound(err) {
		t.Errorf("a missing tag: %v", err)
	}
	content, desc := blob(3*mib+17, 1)
	if ok, err := r.Has(ctx, desc); ok || err != nil {
		t.Errorf("Has before: %v, %v", ok, err)
	}
	for range 2 { // the second time there is nothing to do
		if err := r.PushBlob(ctx, desc, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	if got := []int{f.requests("POST"), f.requests("PATCH"), f.requests("PUT")}; !slices.Equal(got, []int{1, 3, 1}) {
		t.Errorf("%v POST, PATCH and PUT requests", got)
	}
	if ok, err := r.Has(ctx, desc); !ok || err != nil {
		t.Errorf("Has after: %v, %v", ok, err)
	}
	want(t, r, content, desc)

	text := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/x","digest":%q,"size":%d},"layers":[]}`,
		ocispec.MediaTypeImageManifest, desc.Digest, desc.Size)
	manifest := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(text), Size: int64(len(text))}
	if err := r.Push(ctx, manifest, text, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(ctx); !errdefs.IsNotFound(err) {
		t.Errorf("before it is tagged: %v", err)
	}
	if err := r.Tag(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	got, err := r.Resolve(ctx)
	if err != nil || got.Digest != manifest.Digest || got.MediaType != manifest.MediaType || got.Size != manifest.Size {
		t.Errorf("resolved to %+v, %v", got, err)
	}
	want(t, r, text, manifest)
	if _, err := r.Open(ctx, ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1}); !errdefs.IsNotFound(err) {
		t.Errorf("a missing blob: %v", err)
	}
}

func TestMount(t *testing.T) {
	f := newFront(t)
	c := newClient(t, remote.Options{})
	from, to := target(t, c, f.host+"/from"), target(t, c, f.host+"/to")
	content, desc := blob(1000, 2)
	if ok, err := to.Mount(t.Context(), desc, "from"); ok || err != nil {
		t.Errorf("mounted what is not there: %v, %v", ok, err)
	}
	if err := from.PushBlob(t.Context(), desc, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if ok, err := to.Mount(t.Context(), desc, "from"); !ok || err != nil {
		t.Errorf("not mounted: %v, %v", ok, err)
	}
	want(t, to, content, desc)
}

// cut lets the first n bytes of a request through and breaks the connection.
func cut(n int64) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(io.LimitReader(r.Body, n), failing{}), r.Body}
		return false
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut") }

func answer(status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(status)
		return true
	}
}

// after lets the request do its work, and loses the answer.
func after(_ http.ResponseWriter, r *http.Request) bool {
	req := r.Clone(r.Context())
	req.URL.Scheme, req.URL.Host, req.RequestURI = "http", r.Host, ""
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		_ = resp.Body.Close()
	}
	panic(http.ErrAbortHandler)
}

// TestUploadFaults: whatever happens to one request, the blob arrives.
func TestUploadFaults(t *testing.T) {
	f := newFront(t)
	for i, tt := range []struct {
		name   string
		method string
		nth    int
		spoil  func(http.ResponseWriter, *http.Request) bool
		most   int64 // bytes sent by PATCH and PUT, 0 for no matter
	}{
		{"chunk cut", "PATCH", 2, cut(mib / 2), 0},
		{"chunk reset", "PATCH", 3, func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, 6 * mib},
		{"chunk refused for now", "PATCH", 2, answer(503), 6 * mib},
		{"chunk stored, answer lost", "PATCH", 2, after, 0},
		{"upload lost", "PATCH", 3, answer(404), 0},
		{"chunks not supported", "PATCH", 1, answer(405), 0},
		{"last request cut", "PUT", 1, cut(1000), 0},
		{"last answer lost", "PUT", 1, after, 5*mib + 1000},
		{"start refused for now", "POST", 1, answer(429), 5*mib + 1000},
		{"look refused for now", "HEAD", 1, answer(502), 5*mib + 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := target(t, newClient(t, remote.Options{ChunkSize: mib}), fmt.Sprintf("%s/up/%d", f.host, i))
			content, desc := blob(5*mib-1, byte(10+i))
			var inner bool // after's own request
			f.on(func(w http.ResponseWriter, r *http.Request, nth int) bool {
				if r.Method != tt.method || nth != tt.nth || inner {
					return false
				}
				inner = true
				return tt.spoil(w, r)
			})
			if err := r.PushBlob(t.Context(), desc, bytes.NewReader(content)); err != nil {
				t.Fatal(err)
			}
			if n := f.sent("PATCH") + f.sent("PUT"); tt.most != 0 && n > tt.most+mib {
				t.Errorf("%d bytes were sent, at most %d should be", n, tt.most)
			}
			f.on(nil)
			want(t, r, content, desc)
		})
	}
}

// TestResume: a registry that says how much it has got is sent the rest only.
// (docker-registry refuses to go on after a chunk that broke.)
func TestResume(t *testing.T) {
	content, desc := blob(3*mib+5, 30)
	var got bytes.Buffer
	var cuts, begun int
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/r/blobs/uploads/", func(w http.ResponseWriter, _ *http.Request) {
		begun++
		w.Header().Set("Location", "/up")
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("PATCH /up", func(w http.ResponseWriter, r *http.Request) {
		if want := fmt.Sprintf("%d-%d", got.Len(), got.Len()+int(r.ContentLength)-1); r.Header.Get("Content-Range") != want {
			t.Errorf("Content-Range %s, want %s", r.Header.Get("Content-Range"), want)
		}
		if cuts++; cuts < 4 {
			_, _ = io.CopyN(&got, r.Body, 100_000)
			panic(http.ErrAbortHandler)
		}
		_, _ = io.Copy(&got, r.Body)
		w.Header().Set("Location", "/up")
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("GET /up", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Range", fmt.Sprintf("0-%d", got.Len()-1))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("PUT /up", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(&got, r.Body)
		if r.URL.Query().Get("digest") != desc.Digest.String() {
			t.Errorf("completed as %s", r.URL)
		}
		w.WriteHeader(http.StatusCreated)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	r := target(t, newClient(t, remote.Options{ChunkSize: mib, PlainHTTP: true}), strings.TrimPrefix(server.URL, "http://")+"/r")
	if err := r.PushBlob(t.Context(), desc, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), content) || begun != 1 {
		t.Errorf("%d bytes arrived of %d, begun %d times", got.Len(), len(content), begun)
	}
}

func TestUploadFails(t *testing.T) {
	f := newFront(t)
	content, desc := blob(2*mib, 40)
	for name, tt := range map[string]struct {
		spoil func(w http.ResponseWriter, r *http.Request, nth int) bool
		want  string
	}{
		"denied": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if r.Method != http.MethodPost {
				return false
			}
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"the repository is\u001b[2J read-only"}]}`)
			return true
		}, `answered 403 Forbidden, DENIED: "the repository is\x1b[2J read-only"`},
		"no location": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method == http.MethodPost && answer(202)(w, r)
		}, "does not say where"},
		"quota": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return (r.Method == http.MethodPatch || r.Method == http.MethodPut) && answer(413)(w, r)
		}, "413"},
		"breaks for ever": {func(_ http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method == http.MethodPatch && cut(1000)(nil, r)
		}, "broken off 5 times"},
	} {
		t.Run(name, func(t *testing.T) {
			f.on(tt.spoil)
			r := target(t, newClient(t, remote.Options{ChunkSize: mib}), f.host+"/fail")
			err := r.PushBlob(t.Context(), desc, bytes.NewReader(content))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), desc.Digest.String()) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			f.on(nil)
			if ok, err := r.Has(t.Context(), desc); ok || err != nil {
				t.Errorf("it is there nevertheless: %v, %v", ok, err)
			}
		})
	}
}

// TestUnlikeItsDigest: the registry is not given what a descriptor lies about.
func TestUnlikeItsDigest(t *testing.T) {
	r := target(t, newClient(t, remote.Options{}), newFront(t).host+"/lie")
	content, desc := blob(1000, 50)
	content[7]++
	if err := r.PushBlob(t.Context(), desc, bytes.NewReader(content)); err == nil {
		t.Error("it was taken")
	}
	if err := r.PushBlob(t.Context(), desc, bytes.NewReader(content[:10])); err == nil || !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "Body length") {
		t.Errorf("a blob that ends early: %v", err)
	}
}

func TestCancel(t *testing.T) {
	f := newFront(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	f.on(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPatch {
			cancel(reason)
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}
		return false
	})
	content, desc := blob(3*mib, 60)
	r := target(t, newClient(t, remote.Options{ChunkSize: mib}), f.host+"/cancel")
	if err := r.PushBlob(ctx, desc, bytes.NewReader(content)); !errors.Is(err, reason) && !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if f.requests("DELETE") != 1 {
		t.Error("the upload was left open")
	}
}

// TestDownload: a stream that breaks goes on where it broke, with a token or
// without.
func TestDownload(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{
		Auth: fetchertest.Bearer, Username: "u", Password: "p", Redirect: true,
	})
	content := fetchertest.Content(3*mib, 1)
	at := reg.AddBlob("lib/x", content)
	text := []byte(`{"schemaVersion":2}`)
	reg.AddManifest("lib/x", "v1", ocispec.MediaTypeImageManifest, text)
	ref, err := store.ParseRef(reg.Host() + "/lib/x:v1")
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, remote.Options{Credentials: auth.Static{reg.Host(): {Username: "u", Password: "p"}}})
	r, err := c.Source(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	reg.Fault(fetchertest.Fault{At: fetchertest.Origin, Status: 503})
	desc, err := r.Resolve(t.Context())
	if err != nil || desc.Digest != digest.FromBytes(text) {
		t.Fatalf("resolved to %+v, %v", desc, err)
	}
	reg.Fault(fetchertest.Fault{Body: fetchertest.Cut, After: mib})
	reg.Fault(fetchertest.Fault{Reset: true})
	reg.Fault(fetchertest.Fault{Status: 500})
	want(t, r, content, ocispec.Descriptor{Digest: at.Digest, Size: at.Size})
	var total int64
	for _, q := range reg.Log() {
		if q.Endpoint == fetchertest.Storage && q.Status == http.StatusPartialContent {
			total += q.N
		}
	}
	if total > 6*mib {
		t.Errorf("%d bytes were asked for", total)
	}
}

func TestDenied(t *testing.T) {
	for _, kind := range []fetchertest.Auth{fetchertest.Basic, fetchertest.Bearer} {
		reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: kind, Username: "u", Password: "p"})
		for name, cred := range map[string]fetcher.Credentials{
			"anonymous": nil, "wrong": auth.Static{reg.Host(): {Username: "u", Password: "x"}},
		} {
			r := target(t, newClient(t, remote.Options{Credentials: cred}), reg.Host()+"/lib/x:v1")
			if _, err := r.Resolve(t.Context()); !errors.Is(err, fetcher.ErrUnauthorized) {
				t.Errorf("%v, %s: %v", kind, name, err)
			}
		}
	}
}

func TestTargetByDigest(t *testing.T) {
	c := newClient(t, remote.Options{})
	ref := store.Ref{Kind: store.Registry, Location: "h/r", Name: digest.FromString("").String()}
	if _, err := c.Target(t.Context(), ref); err == nil {
		t.Error("a digest was taken for a tag")
	}
}

// TestReferrers: a registry that keeps no list of referrers is given one.
func TestReferrers(t *testing.T) {
	f := newFront(t)
	r := target(t, newClient(t, remote.Options{}), f.host+"/ref")
	content, config := blob(10, 70)
	if err := r.PushBlob(t.Context(), config, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	subject := digest.FromString("subject")
	var all []digest.Digest
	for i := range 2 {
		text := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/x","digest":%q,"size":10},"layers":[],"artifactType":"a/b","subject":{"mediaType":"c/d","digest":%q,"size":7},"annotations":{"n":"%d"}}`,
			ocispec.MediaTypeImageManifest, config.Digest, subject, i)
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "a/b", Digest: digest.FromBytes(text), Size: int64(len(text))}
		for range 2 { // pushed again, it is not listed again
			if err := r.Push(t.Context(), desc, text, nil); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, desc.Digest)
	}
	list := target(t, newClient(t, remote.Options{}), f.host+"/ref:sha256-"+subject.Encoded())
	desc, err := list.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := list.Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	text, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if strings.Count(string(text), d.String()) != 1 {
			t.Errorf("%s is not listed once: %s", d, text)
		}
	}
}
