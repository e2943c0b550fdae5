// SPDX-License-Identifier: Apache-2.0

package shape_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
)

// network is 10 ms away; a unit of 16 KiB takes 16 ms.
var network = shape.Profile{Name: "test", RTT: 10 * time.Millisecond, Rate: 1 << 20}

// upstream answers every GET with as many bytes as its path ends in.
type upstream struct{}

func (upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	n, err := strconv.Atoi(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	if err != nil || r.Method != http.MethodGet {
		n = 0
	}
	if r.Body != nil {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, err
		}
	}
	return &http.Response{
		StatusCode: http.StatusOK, Request: r, ContentLength: int64(n),
		Header: http.Header{"Content-Length": {strconv.Itoa(n)}, "X-Host": {r.Host}},
		Body:   io.NopCloser(strings.NewReader(strings.Repeat("x", n))),
	}, nil
}

func newProxy(opts shape.Options) *shape.Proxy {
	opts.Profile = network
	opts.Upstream = &url.URL{Scheme: "http", Host: "registry"}
	opts.Transport = upstream{}
	return shape.New(opts, "storage:1")
}

// A client is one connection to a handler.
type client struct {
	ctx context.Context //nolint:containedctx // it names the connection
	h   http.Handler
}

func dial(t *testing.T, p *shape.Proxy, h http.Handler) client {
	return client{p.ConnContext(t.Context(), nil), h}
}

func (c client) do(method, target, authorization string, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(c.ctx, method, target, body)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	c.h.ServeHTTP(w, r)
	return w
}

func (c client) get(target string) *httptest.ResponseRecorder {
	return c.do(http.MethodGet, target, "", nil)
}

// TestTime: how long things take is a matter of round trips and bytes alone.
func TestTime(t *testing.T) {
	const ms = time.Millisecond
	const blob = "http://r/v2/a/blobs/16384"
	for _, tt := range []struct {
		name string
		opts shape.Options
		do   func(t *testing.T, p *shape.Proxy)
		want time.Duration
	}{
		{"connection, request and body", shape.Options{}, func(t *testing.T, p *shape.Proxy) {
			dial(t, p, p.Registry()).get(blob)
		}, 20*ms + 15625*time.Microsecond},
		{"connection with TLS", shape.Options{TLS: true}, func(t *testing.T, p *shape.Proxy) {
			dial(t, p, p.Registry()).get("http://r/v2/")
		}, 30 * ms},
		{"second request of a connection", shape.Options{}, func(t *testing.T, p *shape.Proxy) {
			c := dial(t, p, p.Registry())
			c.get("http://r/v2/")
			c.get("http://r/v2/")
		}, 30 * ms},
		{"server that thinks", shape.Options{Delay: 7 * ms}, func(t *testing.T, p *shape.Proxy) {
			dial(t, p, p.Registry()).get("http://r/v2/")
		}, 27 * ms},
		{"two bodies share the bandwidth", shape.Options{}, func(t *testing.T, p *shape.Proxy) {
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { dial(t, p, p.Registry()).get(blob) })
			}
			wg.Wait()
		}, 20*ms + 2*15625*time.Microsecond},
		{"an upload takes the other direction", shape.Options{}, func(t *testing.T, p *shape.Proxy) {
			dial(t, p, p.Registry()).do(http.MethodPut, "http://r/v2/a/blobs/uploads/1", "", bytes.NewReader(make([]byte, 16<<10)))
		}, 20*ms + 15625*time.Microsecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProxy(tt.opts)
				begun := time.Now()
				tt.do(t, p)
				if got := time.Since(begun); got != tt.want {
					t.Errorf("took %v, want %v", got, tt.want)
				}
			})
		})
	}
}

// TestRamp: a connection carries ten segments in its first round trip, twice as
// much in each that follows, and forgets that when it is idle.
func TestRamp(t *testing.T) {
	const rtt, segments = 10 * time.Millisecond, 14600
	synctest.Test(t, func(t *testing.T) {
		p := shape.New(shape.Options{
			Profile: shape.Profile{RTT: rtt}, Ramp: true,
			Upstream: &url.URL{Scheme: "http", Host: "registry"}, Transport: upstream{},
		}, "")
		used := dial(t, p, p.Registry())
		for _, tt := range []struct {
			name  string
			c     client
			bytes int
			want  time.Duration
		}{
			{"what fits", dial(t, p, p.Registry()), segments, 2 * rtt},
			{"a byte more", dial(t, p, p.Registry()), segments + 1, 3 * rtt},
			{"three rounds", used, (1 + 2 + 4) * segments, 4 * rtt},
			{"the same connection, at once", used, 8 * segments, rtt},
			{"the last round was not used up", used, 16*segments - 1, rtt},
			{"so it did not grow", used, 16*segments + 1, 2 * rtt},
		} {
			begun := time.Now()
			tt.c.get("http://r/v2/a/blobs/" + strconv.Itoa(tt.bytes))
			if got := time.Since(begun); got != tt.want {
				t.Errorf("%s: took %v, want %v", tt.name, got, tt.want)
			}
		}
		time.Sleep(2 * time.Second)
		begun := time.Now()
		used.get("http://r/v2/a/blobs/" + strconv.Itoa(segments+1))
		if got := time.Since(begun); got != 2*rtt {
			t.Errorf("after a pause: took %v, want %v", got, 2*rtt)
		}
	})
}

// TestTokenAndRedirect: a blob costs what it costs at a large registry, and
// the log shows each step.
func TestTokenAndRedirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(shape.Options{Token: true, Redirect: true})
		begun := time.Now()
		registry := dial(t, p, p.Registry())
		const blob = "http://r/v2/a/b/blobs/sha256:00/100"
		refused := registry.get(blob)
		want := `Bearer realm="http://r/token",service="r",scope="repository:a/b:pull"`
		if got := refused.Header().Get("WWW-Authenticate"); refused.Code != http.StatusUnauthorized || got != want {
			t.Fatalf("status %d, challenge %s, want %s", refused.Code, got, want)
		}
		token := bearer(t, registry.get("http://r/token?service=r&scope=repository:a/b:pull"))
		if other := registry.do(http.MethodGet, "http://r/v2/other/blobs/sha256:00/1", token, nil); other.Code != http.StatusUnauthorized {
			t.Errorf("the token of a/b opens another repository: status %d", other.Code)
		}
		redirect := registry.do(http.MethodGet, blob, token, nil)
		location := redirect.Header().Get("Location")
		if redirect.Code != http.StatusTemporaryRedirect || !strings.HasPrefix(location, "http://storage:1/v2/a/b/blobs/sha256:00/100?") {
			t.Fatalf("status %d, location %s", redirect.Code, location)
		}
		storage := dial(t, p, p.Storage())
		if got := storage.do(http.MethodGet, location, token, nil); got.Code != http.StatusBadRequest {
			t.Errorf("storage took the registry's token: status %d", got.Code)
		}
		if got := storage.get(location).Body.Len(); got != 100 {
			t.Errorf("%d bytes, want 100", got)
		}

		log := p.Log()
		var got []string
		for _, q := range log {
			got = append(got, string(q.Endpoint)+" "+strconv.Itoa(q.Status))
		}
		steps := []string{"registry 401", "token 200", "registry 401", "registry 307", "storage 400", "storage 200"}
		if !slices.Equal(got, steps) {
			t.Errorf("steps %q, want %q", got, steps)
		}
		s := log.Summarize(begun, time.Now())
		if len(log.Chain()) != 6 || log.Trips() != 8 || s.Connections != 2 || s.Waiting+s.Transfer != time.Since(begun) {
			t.Errorf("chain of %d, %d round trips, %+v in %v", len(log.Chain()), log.Trips(), s, time.Since(begun))
		}
	})
}

func bearer(t *testing.T, r *httptest.ResponseRecorder) string {
	t.Helper()
	var token struct{ Token string }
	if err := json.Unmarshal(r.Body.Bytes(), &token); err != nil {
		t.Fatal(err)
	}
	return "Bearer " + token.Token
}

// TestLog holds the arithmetic against requests whose times are given.
func TestLog(t *testing.T) {
	zero := time.Unix(0, 0)
	at := func(s int) time.Time { return zero.Add(time.Duration(s) * time.Second) }
	q := func(path string, start, first, end int) shape.Request {
		return shape.Request{Path: path, Start: at(start), First: at(first), End: at(end), Trips: 1, Bytes: 10}
	}
	for _, tt := range []struct {
		name  string
		log   shape.Log
		chain string
		want  shape.Summary // of the seconds 0 to 10
	}{
		{"nothing", nil, "", shape.Summary{Idle: 10 * time.Second}},
		{
			"one after the other",
			shape.Log{q("a", 1, 2, 3), q("b", 3, 5, 5)},
			"ab",
			shape.Summary{Requests: 2, Bytes: 20, Transfer: time.Second, Waiting: 3 * time.Second, Idle: 6 * time.Second},
		},
		{
			"at the same time",
			shape.Log{q("a", 1, 3, 5), q("b", 2, 4, 6)},
			"a",
			shape.Summary{Requests: 2, Bytes: 20, Transfer: 3 * time.Second, Waiting: 2 * time.Second, Idle: 5 * time.Second},
		},
		{
			"the longest of several",
			shape.Log{q("a", 0, 1, 9), q("b", 1, 2, 2), q("c", 2, 3, 3), q("d", 2, 3, 5), q("e", 4, 5, 6)},
			"bce",
			shape.Summary{Requests: 5, Bytes: 50, Transfer: 8 * time.Second, Waiting: time.Second, Idle: time.Second},
		},
		{
			"outside of the time",
			shape.Log{q("a", -2, -1, 1), q("b", 9, 10, 12)},
			"ab",
			shape.Summary{Requests: 1, Bytes: 10, Transfer: time.Second, Waiting: time.Second, Idle: 8 * time.Second},
		},
		{
			"without an answer",
			shape.Log{{Path: "a", Start: at(2), End: at(4)}},
			"a",
			shape.Summary{Requests: 1, Waiting: 2 * time.Second, Idle: 8 * time.Second},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var chain string
			for _, q := range tt.log.Chain() {
				chain += q.Path
			}
			if chain != tt.chain {
				t.Errorf("chain %s, want %s", chain, tt.chain)
			}
			if got := tt.log.Summarize(at(0), at(10)); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestUnderWay: a request that has not ended is in the log, and Reset forgets
// what was before it.
func TestUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(shape.Options{})
		c := dial(t, p, p.Registry())
		c.get("http://r/v2/")
		p.Reset()
		var wg sync.WaitGroup
		wg.Go(func() { c.get("http://r/v2/a/blobs/1000") })
		time.Sleep(time.Millisecond)
		log := p.Log()
		if len(log) != 1 || log[0].Status != 0 || log[0].End.Sub(log[0].Start) != time.Millisecond {
			t.Errorf("under way: %+v", log)
		}
		wg.Wait()
		if log = p.Log(); len(log) != 1 || log[0].Bytes != 1000 || log[0].Status != http.StatusOK {
			t.Errorf("at the end: %+v", log)
		}
	})
}

// TestStart: over real connections, the token flow ends at the second host.
func TestStart(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host+" "+r.Header.Get("Range"))
	}))
	t.Cleanup(server.Close)
	target, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	p, err := shape.Start(t.Context(), shape.Options{Upstream: target, Redirect: true}, "127.0.0.1:0", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.Host()+"/v2/a/blobs/sha256:00", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Range", "bytes=0-1")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	log := p.Log()
	if err != nil || len(log) != 2 || log[1].Endpoint != shape.Storage || log[1].Range != "bytes=0-1" || log[1].Bytes != int64(len(text)) {
		t.Errorf("%q, %v, %+v", text, err, log)
	}
}
