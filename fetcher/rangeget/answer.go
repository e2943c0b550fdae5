// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"
)

// An Answer is the answer to one request. Reads of its Body are watched, and
// it must be closed.
type Answer struct {
	*http.Response
	URL *url.URL // as asked for; Response.Request may be another
}

// Timeouts say how long to wait for a server.
type Timeouts struct {
	DialTimeout   time.Duration // for a connection; default 10 s
	HeaderTimeout time.Duration // for an answer's header, with whatever has to be done before; default 30 s
	IdleTimeout   time.Duration // for the next bytes of a body; default 30 s
}

// WithDefaults returns t with the defaults in place of what is not set.
func (t Timeouts) WithDefaults() Timeouts {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.DialTimeout, 10*time.Second)
	set(&t.HeaderTimeout, 30*time.Second)
	set(&t.IdleTimeout, 30*time.Second)
	return t
}

// A Watch says how long to wait for an answer.
type Watch struct {
	Header time.Duration // for its header, and whatever has to be done before
	Idle   time.Duration // for the next Pace bytes of its body
	Pace   int           // default 1: any byte will do, however late the next
}

// Do returns the answer that send gets for a request for u, whatever the
// status. The context that send is given is cancelled when ctx or life ends,
// when send takes too long, and when the body stalls.
func (w Watch) Do(ctx, life context.Context, u *url.URL, send func(context.Context) (*http.Response, error)) (*Answer, error) {
	watched, cancel := context.WithCancelCause(ctx)
	detach := context.AfterFunc(life, func() { cancel(fs.ErrClosed) })
	b := &body{
		ctx:     ctx,
		watched: watched,
		watch:   w,
		timer:   time.AfterFunc(w.Header, func() { cancel(errStalled) }),
	}
	b.release = func() {
		b.timer.Stop()
		detach()
		cancel(nil)
	}
	r, err := send(watched) //nolint:bodyclose // closing the answer closes it
	b.timer.Stop()
	if err != nil {
		err = transportError(ctx, context.Cause(watched), err)
		b.release()
		return nil, err
	}
	b.rc, r.Body = r.Body, b
	return &Answer{r, u}, nil
}

// Served reports whether the answer is about the bytes of a blob, be it that
// there are none where they were asked for.
func (a *Answer) Served() bool {
	switch a.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		return true
	}
	return false
}

// Refused reports whether the answer asks for authorization, or for other.
func (a *Answer) Refused() bool {
	return a.StatusCode == http.StatusUnauthorized || a.StatusCode == http.StatusForbidden
}

// Redirects reports whether the answer leads elsewhere.
func (a *Answer) Redirects() bool {
	switch a.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// Discard reads what little is left of a body that nobody wants, so that its
// connection can be used again, and closes it.
func (a *Answer) Discard() {
	// 16 KiB: error bodies are shorter; for more a new connection is cheaper.
	_, _ = io.CopyN(io.Discard, a.Body, 16<<10)
	_ = a.Body.Close()
}

// SourcePace is the Pace for sources that have another behind them: one that
// trickles is as good as away. 16 KiB in 5 s are a twelfth of what each of 32
// streams gets of 10 Mb/s.
const SourcePace = 16 << 10

// body is the body of an answer, every read of which is watched. The time its
// consumer takes between two reads does not count.
type body struct {
	rc      io.ReadCloser
	ctx     context.Context // the caller's
	watched context.Context // the request's
	watch   Watch
	timer   *time.Timer
	release func()

	got    int           // bytes, less than the pace
	waited time.Duration // for them
}

func (b *body) Read(p []byte) (int, error) {
	begun := time.Now()
	b.timer.Reset(b.watch.Idle - b.waited)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	b.got += n
	b.waited += time.Since(begun)
	if b.got >= b.watch.Pace {
		b.got, b.waited = 0, 0
	}
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
