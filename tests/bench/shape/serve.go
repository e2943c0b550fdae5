// SPDX-License-Identifier: Apache-2.0

package shape

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"
)

// Registry returns what is served as the registry and its token service.
func (p *Proxy) Registry() http.Handler {
	token := p.shaped(Token, p.tokens.serve)
	registry := p.shaped(Registry, p.serveRegistry)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == tokenPath {
			token(w, r)
		} else {
			registry(w, r)
		}
	})
}

// Storage returns what is served where blobs are redirected to.
func (p *Proxy) Storage() http.Handler { return p.shaped(Storage, p.serveStorage) }

func (p *Proxy) serveRegistry(w http.ResponseWriter, r *http.Request) {
	switch {
	case p.opts.Token && !p.tokens.allow(r):
		challenge(w, r)
	case p.opts.Redirect && isBlob(r):
		w.Header().Set("Location", "http://"+p.storage+r.URL.Path+"?signature=1")
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusTemporaryRedirect)
	default:
		p.upstream.ServeHTTP(w, r)
	}
}

// serveStorage refuses what carries a token, as object stores do.
func (p *Proxy) serveStorage(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "" || !isBlob(r) {
		http.Error(w, "only one way of authorization, and only blobs", http.StatusBadRequest)
		return
	}
	p.upstream.ServeHTTP(w, r)
}

func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
}

// shaped returns h as it looks from afar.
func (p *Proxy) shaped(e Endpoint, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := connection(r)
		opens := !c.used.Swap(true)
		trips := p.opts.trips(opens)
		q := p.log.begin(Request{
			Endpoint: e, Method: r.Method, Path: r.URL.Path, Range: r.Header.Get("Range"),
			Conn: c.id, Opened: opens, Trips: trips,
		})
		out := &writer{ResponseWriter: w, p: p, q: q, c: c, ctx: r.Context()}
		defer out.finish()
		pause(r.Context(), time.Duration(trips)*p.opts.RTT+p.opts.Delay)
		r.Body = &body{ReadCloser: r.Body, p: p, ctx: r.Context(), at: time.Now()}
		h(out, r)
	}
}

// pause waits for d, or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// A writer sends an answer at the pace of the link. What it logs is stamped
// before the client sees it, so that whatever the client does next begins later.
type writer struct {
	http.ResponseWriter
	p   *Proxy
	q   *Request
	c   *conn
	ctx context.Context //nolint:containedctx // a writer lives as long as its request
	at  time.Time       // when the next bytes could be sent, were the machine fast enough
}

func (w *writer) WriteHeader(status int) {
	w.p.log.header(w.q, status)
	w.at = time.Now()
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(b []byte) (n int, err error) {
	if w.q.Status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	for len(b) > 0 && err == nil {
		part := b[:min(len(b), unit)]
		if w.p.opts.Ramp {
			k, at := w.c.ramp.send(w.p.opts.RTT, w.at, len(part))
			part, w.at = part[:k], at
		}
		w.at = w.p.down.send(w.at, len(part))
		pause(w.ctx, time.Until(w.at))
		w.p.log.sent(w.q, len(part))
		var k int
		k, err = w.ResponseWriter.Write(part)
		n += k
		b = b[len(part):]
	}
	return n, err
}

// finish ends the request. A body whose length was not told ends only now.
func (w *writer) finish() {
	if w.q.Status == 0 {
		w.p.log.header(w.q, http.StatusOK)
	}
	w.p.log.finish(w.q, w.Header().Get("Content-Length") == "")
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A body arrives at the pace of the link.
type body struct {
	io.ReadCloser
	p   *Proxy
	ctx context.Context //nolint:containedctx // a body lives as long as its request
	at  time.Time       // as a writer's
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), unit)])
	b.at = b.p.up.send(b.at, n)
	pause(b.ctx, time.Until(b.at))
	return n, err
}
