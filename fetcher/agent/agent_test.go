// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/agent"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
)

var kinds = []agent.Kind{agent.Prefix, agent.Mirror, agent.Proxy}

// modes are registries as they come.
var modes = map[string]fetchertest.Options{
	"open":                {},
	"redirects":           {Redirect: true},
	"basic":               {Auth: fetchertest.Basic, Username: "u", Password: "p"},
	"bearer":              {Auth: fetchertest.Bearer, Username: "u", Password: "p"},
	"bearer and redirect": {Auth: fetchertest.Bearer, Username: "u", Password: "p", Redirect: true},
}

// patience is how long the tests wait for an agent: longer than any of its
// answers takes.
const patience = 20 * time.Second

// tower opens blobs of reg by way of an agent, and else of reg itself, as the
// daemon does. relayed opens them by way of the agent alone.
func tower(t *testing.T, reg *fetchertest.Registry, opts agent.Options) (whole, relayed fetcher.Opener) {
	t.Helper()
	if opts.HeaderTimeout == 0 {
		opts.HeaderTimeout, opts.IdleTimeout = patience, patience
	}
	a, err := agent.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	creds := auth.Static{reg.Host(): {Username: "u", Password: "p"}}
	o := registry.New(registry.Options{Credentials: creds, HostsDir: trusting(t, reg)})
	t.Cleanup(func() {
		_ = a.Close()
		_ = o.Close()
	})
	limited := limit.New(o, limit.Options{})
	by := limited.Over(a.Opener(o.Via(a, opts.Timeouts)))
	elsewhere := func(ref fetcher.Ref) []mirror.Place {
		return []mirror.Place{{Name: "agent", Ref: a.Ref(ref), Opener: by}}
	}
	mirrored := mirror.New(o, limited, mirror.Options{Elsewhere: elsewhere, Penalty: time.Hour})
	return retry.New(mirrored, retry.Options{First: time.Millisecond}), at{a, by}
}

// at is an Opener by way of an agent of the refs that everybody knows.
type at struct {
	a    *agent.Agent
	next fetcher.Opener
}

func (o at) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	return o.next.Open(ctx, o.a.Ref(ref))
}

// trusting returns a hosts.toml directory by which reg's certificate is
// trusted, if it has one.
func trusting(t *testing.T, reg *fetchertest.Registry) string {
	t.Helper()
	if !strings.HasPrefix(reg.URL(), "https") {
		return ""
	}
	dir := t.TempDir()
	host := filepath.Join(dir, reg.Host())
	if err := os.Mkdir(host, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "ca.crt"), reg.CertificatePEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBlob: of one kind of agent, blobs are opened without their size.
func TestBlob(t *testing.T) {
	for _, kind := range kinds {
		for name, opts := range modes {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				reg, p := fetchertest.NewRegistry(t, opts), newPeer(t, kind)
				_, relayed := tower(t, reg, agent.Options{Kind: kind, URL: p.url()})
				known := kind != agent.Mirror
				fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
					ref := reg.AddBlob("r", content)
					if !known {
						ref.Size = 0
					}
					return fetchertest.Open(t, relayed, ref)
				})
			})
		}
	}
}

// TestAllBytesComeFromThePeer: of a registry itself, whatever it wants to see,
// nobody asks more than whether it wants to see something.
func TestAllBytesComeFromThePeer(t *testing.T) {
	for _, kind := range kinds {
		for name, opts := range modes {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				reg, p := fetchertest.NewRegistry(t, opts), newPeer(t, kind)
				whole, _ := tower(t, reg, agent.Options{Kind: kind, URL: p.url() + "/"})
				content := fetchertest.Content(100_000, 1)
				ref := reg.AddBlob("team/app", content)
				b := fetchertest.Open(t, whole, ref)
				fetchertest.Want(t, b, content, 0, 10_000)
				fetchertest.Want(t, b, content, 50_000, 10_000)
				direct := 0
				for _, q := range reg.Log() {
					if q.Header[relayedBy] == nil && q.Endpoint != fetchertest.Token {
						if direct++; q.N > 1 || q.Endpoint != fetchertest.Origin {
							t.Errorf("%s was asked directly for %d bytes", q.Endpoint, q.N)
						}
					}
				}
				if direct > 1 {
					t.Errorf("%d direct requests, want one at most", direct)
				}
				calls := p.calls()
				if len(calls) != 2 {
					t.Fatalf("the peer got %d requests for two reads", len(calls))
				}
				for _, c := range calls {
					if c.target != ref.URL {
						t.Errorf("the peer was asked for %s, want %s", c.target, ref.URL)
					}
				}
			})
		}
	}
}

// TestManyFirstReads: of all that begin at once, one asks the registry whether
// it wants authorization, and none is refused by way of the agent.
func TestManyFirstReads(t *testing.T) {
	for _, kind := range kinds {
		reg, p := fetchertest.NewRegistry(t, modes["bearer and redirect"]), newPeer(t, kind)
		whole, _ := tower(t, reg, agent.Options{Kind: kind, URL: p.url()})
		content := fetchertest.Content(2000, 1)
		b := fetchertest.Open(t, whole, reg.AddBlob("r", content))
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				got := make([]byte, 10)
				if _, err := b.ReadAt(t.Context(), got, 100); err != nil || !bytes.Equal(got, content[100:110]) {
					t.Errorf("%s: got %x, %v", kind, got, err)
				}
			})
		}
		all.Wait()
		direct := 0
		for _, q := range reg.Log() {
			if q.Header[relayedBy] == nil {
				direct++
			}
		}
		if asked := len(p.calls()); asked != 20 || direct != 2 {
			t.Errorf("%s: the agent got %d requests for 20 reads, and the registry and its token service %d, want 2", kind, asked, direct)
		}
	}
}

// TestPriority: Dragonfly is told what somebody waits for.
func TestPriority(t *testing.T) {
	for _, kind := range kinds {
		reg, p := fetchertest.NewRegistry(t, fetchertest.Options{}), newPeer(t, kind)
		whole, _ := tower(t, reg, agent.Options{Kind: kind, URL: p.url()})
		b := fetchertest.Open(t, whole, reg.AddBlob("r", fetchertest.Content(2000, 1)))
		for class, want := range map[limit.Class]string{limit.Demand: "6", limit.Prefetch: "3", limit.Background: "3"} {
			p.calls()
			if _, err := b.ReadAt(limit.With(t.Context(), class), make([]byte, 10), 0); err != nil {
				t.Fatal(err)
			}
			h := p.calls()[0].header
			priority, use := h.Get("X-Dragonfly-Priority"), h.Get("X-Dragonfly-Use-P2P")
			if kind == agent.Prefix {
				want = ""
			}
			if priority != want || (use == "true") != (want != "") {
				t.Errorf("%s, class %d: priority %q, use %q; want %q", kind, class, priority, use, want)
			}
		}
	}
}

// TestRedirectPassedOn is followed by way of the agent, too: the URL it leads
// to is shown whole, and no authorization to its host.
func TestRedirectPassedOn(t *testing.T) {
	for _, kind := range kinds {
		reg, p := fetchertest.NewRegistry(t, modes["bearer and redirect"]), newPeer(t, kind)
		p.passRedirectsOn()
		whole, _ := tower(t, reg, agent.Options{Kind: kind, URL: p.url()})
		content := fetchertest.Content(100_000, 1)
		b := fetchertest.Open(t, whole, reg.AddBlob("r", content))
		fetchertest.Want(t, b, content, 0, 10)
		fetchertest.Want(t, b, content, 50_000, 10)
		calls := p.calls()
		if len(calls) != 3 {
			t.Fatalf("%s: %d requests, want two for the first read and one for the second", kind, len(calls))
		}
		for _, c := range calls[1:] {
			if !strings.Contains(c.target, reg.StorageHost()+"/sha256:") || !strings.Contains(c.target, "?Signature=") || c.header.Get("Authorization") != "" {
				t.Errorf("%s: asked for %s with %v", kind, c.target, c.header)
			}
		}
		reg.ExpireRedirects()
		fetchertest.Want(t, b, content, 50_000, 10)
		if n := len(p.calls()); n != 3 {
			t.Errorf("%s: %d requests after the redirect had expired, want 3", kind, n)
		}
	}
}

// TestProxyOfHTTPS: an HTTP proxy is asked for a tunnel to a registry with TLS.
// Whose certificates to trust in there is configured.
func TestProxyOfHTTPS(t *testing.T) {
	reg, p := fetchertest.NewRegistry(t, fetchertest.Options{TLS: new(tls.Config)}), newPeer(t, agent.Proxy)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, reg.CertificatePEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	content := fetchertest.Content(2000, 1)
	ref := reg.AddBlob("r", content)
	for _, c := range []struct {
		file     string
		priority bool // that the registry was shown one: the bytes came by way of the proxy
	}{{ca, true}, {"", false}} {
		whole, _ := tower(t, reg, agent.Options{Kind: agent.Proxy, URL: p.url(), CAFile: c.file})
		reg.ResetLog()
		fetchertest.Want(t, fetchertest.Open(t, whole, ref), content, 0, 10)
		log := reg.Log()
		if got := log[len(log)-1].Header["X-Dragonfly-Priority"] != nil; got != c.priority || len(p.calls()) == 0 {
			t.Errorf("with certificates %q the bytes came by way of the proxy: %v", c.file, got)
		}
	}
}

func TestBadOptions(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for says, opts := range map[string]agent.Options{
		"http://host:port/path":   {Kind: agent.Prefix, URL: "agent:1"},
		"not http://host":         {Kind: agent.Prefix, URL: "http://u:s3cr3t@agent"},
		"kind of agent \"torrent": {Kind: "torrent", URL: "http://agent"},
		"there is none in":        {Kind: agent.Proxy, URL: "http://agent", CAFile: empty},
		"no such file":            {Kind: agent.Proxy, URL: "http://agent", CAFile: "/nowhere/ca.pem"},
	} {
		if _, err := agent.New(opts); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	a, err := agent.New(agent.Options{Kind: agent.Prefix, URL: "http://agent"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Opener(nil).Open(t.Context(), fetcher.Ref{URL: "http://other/https://r/v2/x"}); err == nil {
		t.Error("a ref of another agent was opened")
	}
}
