// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"io"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher/limit"
)

// request sends a request to a place and returns when the answer has begun.
type request func(ctx context.Context, at *place) (io.ReadCloser, error)

// race sends a request to a place. If somebody waits for it and the answer is
// late, it is sent to the next place as well, and to the same one where there
// is no other: what makes one answer late is more often a packet, a connection
// or a server behind the host's name than the host, and to read is harmless to
// repeat. The first answer wins and the other request is cancelled. When both
// fail, race returns what came of the first.
func (b *Blob) race(ctx context.Context, at *place, ask request) *leg {
	first := b.newLeg(ctx, at)
	late, known := at.host.late()
	if !known || limit.Of(ctx) != limit.Demand {
		return first.run(ask)
	}
	at.host.save()
	r := &contest{first: first, ask: ask, through: make(chan struct{})}
	first.begun = func() { r.arm(late) }
	first.run(ask)
	second := r.disarm()
	switch {
	case second == nil:
		return first
	case first.err == nil && r.claim(first):
		second.cancel(nil)
		return first
	}
	<-r.through
	if second.err != nil { // else first has claimed, or failed
		b.account(ctx, second.at, second.err)
		return first
	}
	switch {
	case first.err == nil:
		_ = first.close()
	case !errors.Is(context.Cause(first.ctx), errBeaten):
		b.account(ctx, first.at, first.err)
	}
	b.o.count.hedgesWon.Add(1)
	return second
}

// rival returns the place where a request to at may be sent as well, if any.
func (b *Blob) rival(at *place) *place {
	now := time.Now()
	for _, p := range b.list() {
		if p != at && p.free(now) {
			return p
		}
	}
	if at.free(now) {
		return at
	}
	return nil
}

// contest is a race under way. The first leg is run by the reader itself, so
// that a race without a second costs no more than a timer.
type contest struct {
	first   *leg
	ask     request
	through chan struct{} // closed when the second leg is

	mu     sync.Mutex // guards what follows
	timer  *time.Timer
	over   bool // no second leg is to be sent any more
	second *leg // nil until it is sent
	winner *leg
}

// arm has a second request sent if the first is late.
func (r *contest) arm(late time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.timer = time.AfterFunc(late, func() { r.first.b.spawn(r.hedge) })
	}
}

// disarm returns the second leg, if there is one.
func (r *contest) disarm() *leg {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.timer != nil {
		r.timer.Stop()
	}
	return r.second
}

// hedge sends the request a second time.
func (r *contest) hedge() {
	l := r.rival()
	if l == nil {
		return
	}
	defer close(r.through)
	l.b.o.count.hedges.Add(1)
	l.run(r.ask)
	switch {
	case l.err != nil:
	case r.claim(l):
		r.first.beaten()
	default:
		_ = l.close()
	}
}

// rival returns the second leg, or nil if there is to be none.
func (r *contest) rival() *leg {
	at := r.first.b.rival(r.first.at)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || at == nil || !r.first.at.host.spend() {
		return nil
	}
	r.second = r.first.b.newLeg(r.first.reader, at)
	return r.second
}

// claim makes l the winner unless the other leg is.
func (r *contest) claim(l *leg) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.winner == nil {
		r.winner = l
	}
	return r.winner == l
}

// leg is one of the requests of a race.
type leg struct {
	b      *Blob
	at     *place
	reader context.Context // whoever reads
	ctx    context.Context // of the request, and of the stream it gives
	cancel context.CancelCauseFunc

	begun  func()        // called when the request is sent; may be nil
	sent   chan struct{} // closed then
	sentAt time.Time     // set before

	rc  io.ReadCloser // what came of it
	err error
}

// newLeg returns a leg to be run. Its time begins when net/http looks for a
// connection: how long it waits for its turn before, in package limit, says
// nothing about the host.
func (b *Blob) newLeg(ctx context.Context, at *place) *leg {
	l := &leg{b: b, at: at, reader: ctx, sent: make(chan struct{})}
	begin := sync.OnceFunc(func() {
		l.sentAt = time.Now()
		close(l.sent)
		if l.begun != nil {
			l.begun()
		}
	})
	ctx, l.cancel = context.WithCancelCause(ctx)
	l.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: func(string) { begin() }})
	return l
}

// run sends the request, and notes how long its answer took to begin.
func (l *leg) run(ask request) *leg {
	if l.rc, l.err = ask(l.ctx, l.at); l.err != nil {
		l.cancel(nil)
		return l
	}
	l.timed()
	return l
}

// errBeaten is why a request was cancelled.
var errBeaten = errors.New("the other answer came first")

// beaten ends the request of a leg that was too slow. It would have taken
// longer than it has: without this the host would seem as fast as it was.
func (l *leg) beaten() {
	l.cancel(errBeaten)
	l.timed()
}

func (l *leg) timed() {
	select {
	case <-l.sent:
		l.at.host.answered(time.Since(l.sentAt))
	default: // no request was needed
	}
}

// close ends the stream that came of the leg, if one did.
func (l *leg) close() error {
	defer l.cancel(nil)
	if l.rc == nil {
		return nil
	}
	return l.rc.Close()
}
