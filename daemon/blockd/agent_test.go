// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/agent"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
)

// Devices whose layers come by way of a peer-to-peer agent.

// peer is an agent that asks the registry for what it is asked for, and sends
// on what it likes.
type peer struct {
	send  func(w http.ResponseWriter, r *http.Request, body []byte)
	asked atomic.Int32
}

func (p *peer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.asked.Add(1)
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, strings.TrimPrefix(r.RequestURI, "/"), http.NoBody)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	req.Header = r.Header.Clone()
	answer, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	body, err := io.ReadAll(answer.Body)
	if errors.Join(err, answer.Body.Close()) != nil {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), answer.Header)
	w.WriteHeader(answer.StatusCode)
	p.send(w, r, body)
}

// agentNode returns a node that asks p first.
func agentNode(t *testing.T, p *peer) *node {
	t.Helper()
	server := httptest.NewServer(p)
	a, err := agent.New(agent.Options{Kind: agent.Prefix, URL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	reg := registry.New(registry.Options{})
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		_ = errors.Join(a.Close(), reg.Close())
	})
	opener := a.Opener(reg.Via(a, rangeget.Timeouts{HeaderTimeout: time.Second, IdleTimeout: time.Second}))
	o := quick(20 * time.Second)
	o.elsewhere = func(ref fetcher.Ref) []mirror.Place {
		return []mirror.Place{{Name: "agent", Ref: a.Ref(ref), Opener: opener}}
	}
	return newNodeOf(t, o)
}

// TestAgentInPlaceOfRegistry: a good agent is all that is asked for bytes.
func TestAgentInPlaceOfRegistry(t *testing.T) {
	p := &peer{send: func(w http.ResponseWriter, _ *http.Request, body []byte) { _, _ = w.Write(body) }}
	n := agentNode(t, p)
	v, content := n.push()
	wantAll(t, n.attach("1", n.save("1", v)).Path, content)
	// One byte, to see whether the registry wants authorization.
	if asked, got := int(p.asked.Load()), len(n.registry.Log()); asked == 0 || got != asked+1 {
		t.Errorf("the agent got %d requests and the registry %d", asked, got)
	}
}

// TestBadAgent: whatever is wrong with the agent, before the image is attached
// or after, the device reads what the registry has.
func TestBadAgent(t *testing.T) {
	for name, send := range map[string]func(w http.ResponseWriter, r *http.Request, body []byte){
		"lies": func(w http.ResponseWriter, _ *http.Request, body []byte) {
			for i := 500; i < len(body); i += 5000 {
				body[i] ^= 1
			}
			_, _ = w.Write(body)
		},
		"dies in the middle": func(w http.ResponseWriter, _ *http.Request, body []byte) {
			_, _ = w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		},
		"hangs in the middle": func(w http.ResponseWriter, r *http.Request, body []byte) {
			_, _ = w.Write(body[:len(body)/2])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var bad atomic.Bool
			p := &peer{send: func(w http.ResponseWriter, r *http.Request, body []byte) {
				if !bad.Load() {
					_, _ = w.Write(body)
					return
				}
				send(w, r, body)
			}}
			n := agentNode(t, p)
			v, content := n.push()
			device := n.attach("1", n.save("1", v)).Path
			bad.Store(true)
			wantAll(t, device, content)

			n = agentNode(t, p)
			v, content = n.push()
			wantAll(t, n.attach("1", n.save("1", v)).Path, content)
		})
	}
}
