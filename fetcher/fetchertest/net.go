// SPDX-License-Identifier: Apache-2.0

package fetchertest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"
)

// start serves h on a port of its own.
func (r *Registry) start(h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Listener = &listener{Listener: s.Listener, r: r}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if r.opts.TLS == nil {
		s.Start()
		return s
	}
	s.TLS = r.opts.TLS.Clone()
	s.StartTLS()
	return s
}

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// listener resets connections while the registry is down and makes the
// handshake of others take a round trip.
type listener struct {
	net.Listener
	r *Registry
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.r.mu.Lock()
		down := l.r.down
		l.r.mu.Unlock()
		if !down {
			return &conn{Conn: c, wait: l.r.opts.RTT}, nil
		}
		reset(c)
	}
}

// conn delays its first byte by the round trip that a handshake takes.
type conn struct {
	net.Conn
	wait time.Duration
	once sync.Once
}

func (c *conn) Read(p []byte) (int, error) {
	c.once.Do(func() { time.Sleep(c.wait) })
	return c.Conn.Read(p)
}

// reset closes c in such a way that the peer sees a reset.
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if w, ok := c.(*conn); ok {
		c = w.Conn
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

func resetConn(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	reset(c)
}

// pacer shares a bandwidth between all bodies.
type pacer struct {
	rate int64 // bytes per second; 0 is no bound

	mu   sync.Mutex // guards free
	free time.Time  // when the link has sent all that was given to it
}

// write sends b at the pace of the link and flushes it.
func (p *pacer) write(w http.ResponseWriter, req *http.Request, b []byte) {
	// 16 KiB: 5 ms of a 25 Mb/s link, so that streams interleave as on a wire.
	const chunk = 16 << 10
	step := len(b)
	if p.rate > 0 {
		step = chunk
	}
	for len(b) > 0 && req.Context().Err() == nil {
		n := min(step, len(b))
		wait(req, p.reserve(n))
		if _, err := w.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
		if p.rate > 0 {
			_ = http.NewResponseController(w).Flush()
		}
	}
	_ = http.NewResponseController(w).Flush()
}

// reserve returns how long it takes until the link has sent n more bytes.
func (p *pacer) reserve(n int) time.Duration {
	if p.rate <= 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	return p.free.Sub(now)
}

func wait(req *http.Request, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-req.Context().Done():
	}
}
