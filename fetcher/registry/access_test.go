// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
)

func openBearer(t *testing.T) (*fetchertest.Registry, *Blob) {
	t.Helper()
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, TokenTTL: time.Hour})
	o := New(Options{})
	t.Cleanup(func() { _ = o.Close() })
	b, err := o.open(t.Context(), reg.AddBlob("r", fetchertest.Content(2000, 1)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return reg, b
}

func read(ctx context.Context, b *Blob) error {
	_, err := b.ReadAt(ctx, make([]byte, 10), 0)
	return err
}

// served returns which endpoints were asked.
func served(reg *fetchertest.Registry) []fetchertest.Endpoint {
	var got []fetchertest.Endpoint
	for _, q := range reg.Log() {
		got = append(got, q.Endpoint)
	}
	return got
}

func TestTokenIsRenewedAheadOfExpiry(t *testing.T) {
	reg, b := openBearer(t)
	if err := read(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	b.access.mu.Lock()
	first := b.access.grant.header
	b.access.grant.renew = time.Now()
	b.access.mu.Unlock()
	reg.Fault(fetchertest.Fault{At: fetchertest.Token, Hang: true})
	reg.ResetLog()
	if err := read(t.Context(), b); err != nil { // does not wait for the token service
		t.Fatal(err)
	}
	if err := reg.Await(t.Context(), fetchertest.Token, 1); err != nil {
		t.Fatal(err)
	}
	b.access.mu.Lock()
	f := b.access.fetching
	b.access.mu.Unlock()
	reg.Release()
	if f == nil {
		t.Fatal("the token is not being renewed")
	}
	if second, err := f.wait(t.Context()); err != nil || second == first {
		t.Errorf("got token %q, %v", second, err)
	}
	reg.ResetLog()
	if err := read(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]fetchertest.Endpoint{fetchertest.Origin}, served(reg)); diff != "" {
		t.Errorf("requests with the new token (-want +got):\n%s", diff)
	}
}

func TestExpiredTokenIsNotSent(t *testing.T) {
	reg, b := openBearer(t)
	if err := read(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	b.access.mu.Lock()
	b.access.grant.expire = time.Now()
	b.access.mu.Unlock()
	reg.ResetLog()
	if err := read(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]fetchertest.Endpoint{fetchertest.Token, fetchertest.Origin}, served(reg)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestReadersShareOneTokenFetch(t *testing.T) {
	reg, b := openBearer(t)
	reg.Fault(fetchertest.Fault{At: fetchertest.Token, Hang: true})
	const readers = 16
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			if err := read(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
	if err := reg.Await(t.Context(), fetchertest.Token, 1); err != nil {
		t.Fatal(err)
	}
	reg.Release()
	wg.Wait()
	tokens := 0
	for _, e := range served(reg) {
		if e == fetchertest.Token {
			tokens++
		}
	}
	if tokens != 1 {
		t.Errorf("%d readers took %d tokens", readers, tokens)
	}
}

func TestTokenFetchOutlivesItsReader(t *testing.T) {
	reg, b := openBearer(t)
	reg.Fault(fetchertest.Fault{At: fetchertest.Token, Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- read(ctx, b) }()
	if err := reg.Await(t.Context(), fetchertest.Token, 1); err != nil {
		t.Fatal(err)
	}
	go func() { second <- read(t.Context(), b) }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled reader: got %v", err)
	}
	reg.Release()
	if err := <-second; err != nil {
		t.Errorf("other reader: got %v", err)
	}
}

func TestTokenServiceDeadlineIsTemporary(t *testing.T) {
	reg, b := openBearer(t)
	b.o.opts.HeaderTimeout, b.o.opts.IdleTimeout = 100*time.Millisecond, time.Millisecond
	reg.Fault(fetchertest.Fault{At: fetchertest.Token, Hang: true})
	if err := read(t.Context(), b); !errors.Is(err, fetcher.ErrTemporary) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want fetcher.ErrTemporary", err)
	}
}

// lookupFunc is fetcher.Credentials as a function.
type lookupFunc func(string) (fetcher.Credential, error)

func (f lookupFunc) Lookup(_ context.Context, u string) (fetcher.Credential, error) { return f(u) }

func TestCredentialsAreLookedUpByRepository(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Basic, Username: "u", Password: "p"})
	errBroken := errors.New("broken")
	var asked string
	cred, err := fetcher.Credential{}, errBroken
	o := New(Options{Credentials: lookupFunc(func(u string) (fetcher.Credential, error) { asked = u; return cred, err })})
	defer func() { _ = o.Close() }()
	b, openErr := o.open(t.Context(), reg.AddBlob("a/b", fetchertest.Content(2000, 1)))
	if openErr != nil {
		t.Fatal(openErr)
	}
	defer func() { _ = b.Close() }()
	if got := read(t.Context(), b); !errors.Is(got, errBroken) || !errors.Is(got, fetcher.ErrTemporary) {
		t.Errorf("lookup that fails: got %v, want it as a temporary error", got)
	}
	cred, err = fetcher.Credential{Username: "u", Password: "p"}, nil
	if got := read(t.Context(), b); got != nil {
		t.Error(got)
	}
	if want := reg.URL() + "/v2/a/b"; asked != want {
		t.Errorf("looked up %q, want %q", asked, want)
	}
}

func TestCredentialIsNotSentInPlain(t *testing.T) {
	h := &host{base: &url.URL{Scheme: "https", Host: "registry.example"}}
	c := auth.Challenge{Scheme: auth.BearerAuth, Parameters: map[string]string{"realm": "http://token.example/x"}}
	if _, err := tokenRequest(t.Context(), h, c, fetcher.Credential{Username: "u", Password: "pa55word"}); err == nil {
		t.Error("a credential was about to be sent over plain http")
	}
	if _, err := tokenRequest(t.Context(), h, c, fetcher.Credential{}); err != nil {
		t.Errorf("anonymous: %v", err)
	}
}

func TestHostsWithoutConfiguration(t *testing.T) {
	o := New(Options{PlainHTTP: []string{"plain.example:5000"}})
	defer func() { _ = o.Close() }()
	for _, c := range []struct{ url, want string }{
		{"https://registry.example/v2/r", "https://registry.example/v2"},
		{"http://registry.example/v2/r", "http://registry.example/v2"},
		{"https://plain.example:5000/v2/r", "http://plain.example:5000/v2"},
		{"https://docker.io/v2/r", "https://registry-1.docker.io/v2"},
		{"https://index.docker.io/v2/r", "https://registry-1.docker.io/v2"},
		{"https://localhost/v2/r", "https://localhost/v2"},
		{"http://localhost:5000/v2/r", "http://localhost:5000/v2"},
	} {
		l, err := parse(fetcher.Ref{URL: c.url + "/blobs/sha256:" + strings.Repeat("a", 64)})
		if err != nil {
			t.Fatal(err)
		}
		h, err := o.host(t.Context(), l)
		if err != nil || h.base.String() != c.want || h.ns != "" || l.repo(h) != "r" {
			t.Errorf("%s: got %+v, %v; want %s", c.url, h, err, c.want)
		}
	}
}

func TestParseToken(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	for _, c := range []struct {
		name, text string
		want       grant
		fail       bool
	}{
		{"token", `{"token":"t","expires_in":1000}`, grant{"Bearer t", at.Add(750 * time.Second), at.Add(900 * time.Second)}, false},
		{"access token", `{"access_token":"a","expires_in":100}`, grant{"Bearer a", at.Add(75 * time.Second), at.Add(90 * time.Second)}, false},
		{"no life", `{"token":"t"}`, grant{"Bearer t", at.Add(45 * time.Second), at.Add(54 * time.Second)}, false},
		{"negative life", `{"token":"t","expires_in":-5}`, grant{"Bearer t", at.Add(45 * time.Second), at.Add(54 * time.Second)}, false},
		{"endless life", `{"token":"t","expires_in":1e300}`, grant{"Bearer t", at.Add(18 * time.Hour), at.Add(21*time.Hour + 36*time.Minute)}, false},
		{"none", `{}`, grant{}, true},
		{"header injection", `{"token":"t\r\nX: y"}`, grant{}, true},
		{"no JSON", `<html>`, grant{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseToken([]byte(c.text), at)
			if (err != nil) != c.fail {
				t.Fatalf("got error %v", err)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(grant{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzChallenge wants every challenge to lead to a request without the
// credential, or to one over https.
func FuzzChallenge(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://auth.example/token",service="s",scope="repository:a/b:pull,push repository:c:pull"`,
		`Basic realm="x"`, `Bearer realm="http://h/?a=%zz"`, `Bearer realm=`, "Bearer \x00=\"\\\"",
	} {
		f.Add(s)
	}
	h := &host{base: &url.URL{Scheme: "https", Host: "registry.example"}, header: http.Header{"X-Test": {"yes"}}}
	f.Fuzz(func(t *testing.T, s string) {
		c := pick(auth.ParseAuthHeader(http.Header{"Www-Authenticate": {s}}))
		if c == nil || c.Scheme != auth.BearerAuth {
			return
		}
		for _, cred := range []fetcher.Credential{{Username: "u", Password: "pa55word"}, {IdentityToken: "pa55word"}} {
			req, err := tokenRequest(t.Context(), h, *c, cred)
			if err != nil {
				if strings.Contains(err.Error(), "pa55word") {
					t.Errorf("%q: error %v", s, err)
				}
				continue
			}
			if req.URL.Scheme != "https" && !strings.HasPrefix(req.URL.Host, "127.") && !strings.HasPrefix(req.URL.Host, "localhost") && !strings.HasPrefix(req.URL.Host, "[") {
				t.Errorf("%q: credential goes to %s://%s", s, req.URL.Scheme, req.URL.Host)
			}
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(`{"token":"t","expires_in":300}`))
	f.Add([]byte(`{"access_token":"t","expires_in":1e999}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		at := time.Unix(0, 0)
		g, err := parseToken(text, at)
		if err == nil && (len(g.header) <= len("Bearer ") || g.renew.Before(at) || g.expire.Before(g.renew)) {
			t.Errorf("%q: got %+v", text, g)
		}
	})
}
