// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"
)

// answer is the answer to one request. Its Body must be closed.
type answer struct {
	*http.Response
	url  *url.URL // as asked for; Response.Request may be another
	body *body
}

// do sends req and returns its answer, whatever the status. The request is
// cancelled when ctx or life ends, when no header comes in time, and when the
// body stalls.
//
// It does without http.Client, whose errors show URLs and redirect targets.
func (o *Opener) do(ctx, life context.Context, h *host, req *http.Request) (*answer, error) {
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", o.opts.UserAgent)
	}
	watched, cancel := context.WithCancelCause(ctx)
	detach := context.AfterFunc(life, func() { cancel(fs.ErrClosed) })
	b := &body{
		ctx:     ctx,
		watched: watched,
		idle:    o.opts.IdleTimeout,
		timer:   time.AfterFunc(o.opts.HeaderTimeout, func() { cancel(errStalled) }),
	}
	b.release = func() {
		b.timer.Stop()
		detach()
		cancel(nil)
	}
	r, err := h.transport.RoundTrip(req.WithContext(watched)) //nolint:bodyclose // closing the answer closes it
	b.timer.Stop()
	if err != nil {
		err = transportError(ctx, context.Cause(watched), err)
		b.release()
		return nil, err
	}
	b.rc = r.Body
	return &answer{r, req.URL, b}, nil
}

// body is the body of an answer, every read of which is watched. The time its
// consumer takes between two reads does not count.
type body struct {
	rc      io.ReadCloser
	ctx     context.Context // the caller's
	watched context.Context // the request's
	idle    time.Duration
	timer   *time.Timer
	release func()
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.idle)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF { //nolint:errorlint // a body ends in io.EOF itself; wrapped, it is a broken one
		err = transportError(b.ctx, context.Cause(b.watched), err)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.rc.Close()
	b.release()
	return err
}

// discard reads what little is left of a body that nobody wants, so that its
// connection can be used again, and closes it.
func (a *answer) discard() {
	// 16 KiB: error bodies are shorter; for more a new connection is cheaper.
	_, _ = io.CopyN(io.Discard, a.body, 16<<10)
	_ = a.body.Close()
}
