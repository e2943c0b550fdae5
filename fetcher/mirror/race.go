// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"io"
	"io/fs"
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
	r := &contest{done: make(chan *leg), over: make(chan struct{})}
	defer close(r.over)
	if !r.enter(first, ask) {
		first.cancel()
		first.err = fs.ErrClosed
		return first
	}
	if l := r.before(late, first); l != nil {
		return l
	}
	rival := b.rival(at)
	if rival == nil || !at.host.spend() {
		return <-r.done
	}
	b.o.count.hedges.Add(1)
	second := b.newLeg(ctx, rival)
	if !r.enter(second, ask) {
		second.cancel()
		return <-r.done
	}
	return b.winner(ctx, r, first, second)
}

// winner returns the first leg of two to succeed, or else the first.
func (b *Blob) winner(ctx context.Context, r *contest, first, second *leg) *leg {
	won := <-r.done
	switch {
	case won.err != nil:
		failed := won
		if won = <-r.done; won.err != nil && won == second {
			won, failed = failed, won
		}
		b.account(ctx, failed.at, failed.err)
	case won == first:
		second.cancel()
	default:
		first.beaten()
	}
	if won == second {
		b.o.count.hedgesWon.Add(1)
	}
	return won
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

// contest is a race under way.
type contest struct {
	done chan *leg     // legs that are through
	over chan struct{} // closed when no other leg is of interest
}

// enter runs l. It reports false once the blob is closed.
func (r *contest) enter(l *leg, ask request) bool {
	return l.b.spawn(func() {
		l.run(ask)
		select {
		case r.done <- l:
		case <-r.over:
			_ = l.close()
		}
	})
}

// before returns l if it is through before its answer is late.
func (r *contest) before(late time.Duration, l *leg) *leg {
	select {
	case <-r.done:
		return l
	case <-l.sent:
	}
	t := time.NewTimer(late)
	defer t.Stop()
	select {
	case <-r.done:
		return l
	case <-t.C:
		return nil
	}
}

// leg is one of the requests of a race.
type leg struct {
	b      *Blob
	at     *place
	ctx    context.Context // of the request, and of the stream it gives
	cancel context.CancelFunc

	sent   chan struct{} // closed when the request is sent
	sentAt time.Time     // set before

	rc  io.ReadCloser // what came of it
	err error
}

// newLeg returns a leg to be run. Its time begins when net/http looks for a
// connection: how long it waits for its turn before, in package limit, says
// nothing about the host.
func (b *Blob) newLeg(ctx context.Context, at *place) *leg {
	l := &leg{b: b, at: at, sent: make(chan struct{})}
	begin := sync.OnceFunc(func() {
		l.sentAt = time.Now()
		close(l.sent)
	})
	ctx, l.cancel = context.WithCancel(ctx)
	l.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: func(string) { begin() }})
	return l
}

// run sends the request, and notes how long its answer took to begin.
func (l *leg) run(ask request) *leg {
	if l.rc, l.err = ask(l.ctx, l.at); l.err != nil {
		l.cancel()
		return l
	}
	l.timed()
	return l
}

// beaten ends the request of a leg that was too slow. It would have taken
// longer than it has: without this the host would seem as fast as it was.
func (l *leg) beaten() {
	l.cancel()
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
	defer l.cancel()
	if l.rc == nil {
		return nil
	}
	return l.rc.Close()
}
