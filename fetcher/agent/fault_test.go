// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/agent"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

const size = 300_000

// partial begins an answer of n bytes at 50,000, of which it sends some.
func partial(w http.ResponseWriter, n, sent int) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes 50000-%d/%d", 50_000+n-1, size))
	w.Header().Set("Content-Length", fmt.Sprint(n))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(fetchertest.Content(size, 1)[50_000 : 50_000+sent])
	_ = http.NewResponseController(w).Flush()
}

// wanted is how many bytes the reads of TestFaults want.
const wanted = 100_000

// faults are what an agent may do wrong.
var faults = map[string]http.HandlerFunc{
	"dies before the answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	"dies in the middle": func(w http.ResponseWriter, _ *http.Request) {
		partial(w, wanted, 40_000)
		panic(http.ErrAbortHandler)
	},
	"hangs":               func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	"hangs in the middle": func(w http.ResponseWriter, r *http.Request) { partial(w, wanted, 40_000); <-r.Context().Done() },
	"knows nothing":       status(404),
	"wants authorization": status(401),
	"forbids":             status(403),
	"is throttled":        status(429, "Retry-After", "86400"),
	"lacks a neighbour":   status(502),
	"is full":             status(503),
	"has another size": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", "bytes 50000-149999/200000")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(make([]byte, wanted))
	},
	"has another range": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-99999/%d", size))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(make([]byte, wanted))
	},
	"sends a page":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>welcome</html>") },
	"sends nothing": status(204),
	"encodes": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		partial(w, wanted, wanted)
	},
	"redirects to itself": func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://x.example/", http.StatusFound)
	},
	"redirects nowhere": status(302, "Location", "ftp://x"),
	"speaks no HTTP": func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, _ = io.WriteString(c, "220 mail.example ESMTP\r\n")
			_ = c.Close()
		}
	},
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// TestFaults: whatever an agent does wrong, the read under way gets its bytes
// from the registry, and so do the next ones, without the agent.
func TestFaults(t *testing.T) {
	for _, kind := range kinds {
		for name, fault := range faults {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				t.Parallel()
				reg, p := fetchertest.NewRegistry(t, modes["bearer and redirect"]), newPeer(t, kind)
				short := rangeget.Timeouts{HeaderTimeout: 300 * time.Millisecond, IdleTimeout: 300 * time.Millisecond}
				whole, _ := tower(t, reg, agent.Options{Kind: kind, URL: p.url(), Timeouts: short})
				content := fetchertest.Content(size, 1)
				b := fetchertest.Open(t, whole, reg.AddBlob("r", content))
				p.answerWith(fault)
				fetchertest.Want(t, b, content, 50_000, wanted)
				if n := len(p.calls()); n == 0 || n > 6 {
					t.Errorf("the agent got %d requests, of which none did any good", n)
				}
				fetchertest.Want(t, b, content, 0, size)
				if n := len(p.calls()); n != 0 {
					t.Errorf("the agent got %d requests more", n)
				}
			})
		}
	}
}

// TestSlowCircle: redirects do not add to what an agent costs at most.
func TestSlowCircle(t *testing.T) {
	reg, p := fetchertest.NewRegistry(t, fetchertest.Options{}), newPeer(t, agent.Prefix)
	short := rangeget.Timeouts{HeaderTimeout: 300 * time.Millisecond, IdleTimeout: 300 * time.Millisecond}
	whole, _ := tower(t, reg, agent.Options{Kind: agent.Prefix, URL: p.url(), Timeouts: short})
	content := fetchertest.Content(size, 1)
	b := fetchertest.Open(t, whole, reg.AddBlob("r", content))
	p.answerWith(func(w http.ResponseWriter, r *http.Request) {
		<-time.After(200 * time.Millisecond)
		http.Redirect(w, r, "https://x.example/", http.StatusFound)
	})
	fetchertest.Want(t, b, content, 0, 10)
	if n := len(p.calls()); n == 0 || n > 2 {
		t.Errorf("the agent got %d requests of 200 ms each, with 300 ms for all", n)
	}
}

// TestDeadAgent: an agent that is not there costs nothing but a refused
// connection, and is named where there is nobody else to ask.
func TestDeadAgent(t *testing.T) {
	for _, kind := range kinds {
		reg, p := fetchertest.NewRegistry(t, fetchertest.Options{}), newPeer(t, kind)
		whole, relayed := tower(t, reg, agent.Options{Kind: kind, URL: p.url()})
		content := fetchertest.Content(2000, 1)
		ref := reg.AddBlob("r", content)
		p.Close()
		fetchertest.Want(t, fetchertest.Open(t, whole, ref), content, 0, 10)
		b := fetchertest.Open(t, relayed, ref)
		if _, err := b.ReadAt(t.Context(), make([]byte, 10), 0); err == nil || !strings.Contains(err.Error(), "agent "+p.Listener.Addr().String()) || !strings.Contains(err.Error(), ref.Digest.String()) {
			t.Errorf("%s: got %v, want the agent and the blob named", kind, err)
		}
	}
}

// TestLiar: an agent that gives wrong bytes of the right length is found out by
// whoever checks them, and is not asked for that blob again.
func TestLiar(t *testing.T) {
	for _, kind := range kinds {
		reg, p := fetchertest.NewRegistry(t, fetchertest.Options{}), newPeer(t, kind)
		whole, _ := tower(t, reg, agent.Options{Kind: kind, URL: p.url()})
		content := fetchertest.Content(size, 1)
		b := fetchertest.Open(t, whole, reg.AddBlob("r", content))
		p.answerWith(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-9/%d", size))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "wrong byte")
		})
		got := make([]byte, 10)
		if _, err := b.ReadAt(t.Context(), got, 0); err != nil || string(got) != "wrong byte" {
			t.Fatalf("%s: got %q, %v", kind, got, err)
		}
		if err := fetcher.Drop(t.Context(), b, 0, 10); err != nil {
			t.Fatal(err)
		}
		p.calls()
		fetchertest.Want(t, b, content, 0, 10)
		if n := len(p.calls()); n != 0 {
			t.Errorf("%s: the liar was asked %d times more", kind, n)
		}
	}
}

// TestChallengeOfAgent: an agent that asks for a password itself, or names the
// service to show it to, is not given one.
func TestChallengeOfAgent(t *testing.T) {
	var asked atomic.Int32
	evil := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(evil.Close)
	for _, kind := range kinds {
		reg, p := fetchertest.NewRegistry(t, modes["bearer"]), newPeer(t, kind)
		whole, _ := tower(t, reg, agent.Options{Kind: kind, URL: p.url()})
		content := fetchertest.Content(2000, 1)
		b := fetchertest.Open(t, whole, reg.AddBlob("r", content))
		p.answerWith(status(401, "WWW-Authenticate", `Bearer realm="`+evil.URL+`",service="evil",scope="x"`))
		fetchertest.Want(t, b, content, 0, 10)
		for _, c := range p.calls() {
			if got := c.header.Get("Authorization"); !strings.HasPrefix(got, "Bearer ") {
				t.Errorf("%s: the agent was shown %q, want a token of the registry's own service", kind, got)
			}
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the agent's token service was asked %d times", n)
	}
}

// TestRegistryAway: what peers have can be read without the registry.
func TestRegistryAway(t *testing.T) {
	for _, kind := range kinds {
		reg, p := fetchertest.NewRegistry(t, fetchertest.Options{}), newPeer(t, kind)
		whole, _ := tower(t, reg, agent.Options{Kind: kind, URL: p.url()})
		content := fetchertest.Content(size, 1)
		b := fetchertest.Open(t, whole, reg.AddBlob("r", content))
		reg.SetDown(true)
		p.answerWith(func(w http.ResponseWriter, _ *http.Request) { partial(w, wanted, wanted) })
		fetchertest.Want(t, b, content, 50_000, wanted)
	}
}
