// SPDX-License-Identifier: Apache-2.0

package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
)

// server is a place that takes its time, and every blob there.
type server struct {
	url    string
	answer atomic.Pointer[answer]
	closed chan struct{}

	asked, cancelled, streams, closes atomic.Int32
}

// answer is how a server answers the next requests.
type answer struct {
	turn  time.Duration // until the request is sent
	takes time.Duration // from then on
	err   error
}

const never = 1000 * time.Hour

var content = []byte("0123456789")

func (s *server) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	a := *s.answer.Load()
	s.asked.Add(1)
	time.Sleep(a.turn)
	if trace := httptrace.ContextClientTrace(ctx); trace != nil {
		trace.GetConn("host:443")
	}
	select {
	case <-time.After(a.takes):
	case <-s.closed:
		return nil, fs.ErrClosed
	case <-ctx.Done():
		s.cancelled.Add(1)
		return nil, ctx.Err()
	}
	if a.err != nil {
		return nil, a.err
	}
	s.streams.Add(1)
	return body{bytes.NewReader(content[off : off+n]), ctx, s}, nil
}

// body ends with the context of its request, as those of net/http do.
type body struct {
	*bytes.Reader
	ctx context.Context
	s   *server
}

func (b body) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, b.ctx.Err()
	}
	return b.Reader.Read(p)
}

func (b body) Close() error {
	b.s.closes.Add(1)
	return nil
}

func (s *server) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, errors.New("not by ReadAt")
}
func (s *server) Size() int64  { return int64(len(content)) }
func (s *server) Close() error { close(s.closed); return nil }

// servers is the Source and the Opener of mirrors and, last, an origin.
type servers []*server

func newServers(n int) servers {
	var all servers
	for i := range n {
		s := &server{url: fmt.Sprintf("https://host%d/x", i), closed: make(chan struct{})}
		s.set(answer{takes: 10 * time.Millisecond})
		all = append(all, s)
	}
	return all
}

func (s *server) set(a answer) { s.answer.Store(&a) }

func (all servers) Mirrors(_ context.Context, ref fetcher.Ref) ([]fetcher.Ref, error) {
	var refs []fetcher.Ref
	for _, s := range all {
		refs = append(refs, fetcher.Ref{URL: s.url, Size: ref.Size})
	}
	return refs, nil
}

func (all servers) Open(_ context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	for _, s := range all {
		if s.url == ref.URL {
			return s, nil
		}
	}
	return nil, fetcher.ErrNotFound
}

// asked returns how many requests each server got since the last call.
func (all servers) asked() string {
	var counts []int32
	for _, s := range all {
		counts = append(counts, s.asked.Swap(0))
	}
	return fmt.Sprint(counts)
}

// racing is a blob of servers, whose pace is known.
type racing struct {
	t *testing.T
	o *mirror.Opener
	b fetcher.Blob
	servers
}

func newRacing(t *testing.T, n int, pace time.Duration) *racing {
	t.Helper()
	all := newServers(n)
	o := mirror.New(all, all, mirror.Options{})
	r := &racing{t, o, open(t, o, int64(len(content))), all}
	all[0].set(answer{takes: pace})
	for range 20 {
		_, _ = r.read(t.Context())
	}
	all.asked()
	return r
}

// end closes the blob, after which nothing may be left over.
func (r *racing) end() {
	r.t.Helper()
	if err := r.b.Close(); err != nil {
		r.t.Error(err)
	}
	for i, s := range r.servers {
		if s.streams.Load() != s.closes.Load() {
			r.t.Errorf("of %d streams of server %d, %d were closed", s.streams.Load(), i, s.closes.Load())
		}
	}
}

// read reads the blob and returns how long that took.
func (r *racing) read(ctx context.Context) (time.Duration, error) {
	r.t.Helper()
	begun := time.Now()
	rc, err := fetcher.ReadRange(ctx, r.b, 1, 8)
	took := time.Since(begun)
	if err != nil {
		return took, err
	}
	got, err := io.ReadAll(rc)
	if string(got) != "12345678" || err != nil {
		r.t.Errorf("got %q, %v", got, err)
	}
	return took, rc.Close()
}

// want reads, which must take a time and have made requests of each server.
func (r *racing) want(took time.Duration, asked string) {
	r.t.Helper()
	if got, err := r.read(r.t.Context()); got != took || err != nil {
		r.t.Errorf("got %v after %v, want an answer after %v", err, got, took)
	}
	if got := r.asked(); got != asked {
		r.t.Errorf("the servers were asked %s times, want %s", got, asked)
	}
}

// hedges expects a number of requests that were sent twice, and how many of
// them were better for it.
func (r *racing) hedges(sent, won int64) {
	r.t.Helper()
	if got := r.o.Stats(); got.Hedges != sent || got.HedgesWon != won {
		r.t.Errorf("got %+v; want %d hedges, of which %d won", got, sent, won)
	}
}

// TestLateRequest is sent to the next place after somewhat more than what 19 of
// 20 answers took, but not before 50 ms.
func TestLateRequest(t *testing.T) {
	for pace, late := range map[time.Duration]time.Duration{
		time.Millisecond: 50 * time.Millisecond, 200 * time.Millisecond: 225 * time.Millisecond,
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRacing(t, 3, pace)
			r.want(pace, "[1 0 0]")
			r.servers[0].set(answer{takes: never})
			r.want(late+10*time.Millisecond, "[1 1 0]")
			r.hedges(1, 1)
			r.end()
			if n := r.servers[0].cancelled.Load(); n != 1 {
				t.Errorf("%d requests were cancelled, want the late one", n)
			}
		})
	}
}

// TestLateButFirst: the first answer wins, whoever gives it.
func TestLateButFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRacing(t, 2, 10*time.Millisecond)
		r.servers[0].set(answer{takes: 70 * time.Millisecond})
		r.servers[1].set(answer{takes: 30 * time.Millisecond})
		r.want(70*time.Millisecond, "[1 1]")
		r.hedges(1, 0)
		r.end()
		if n := r.servers[1].cancelled.Load(); n != 1 {
			t.Errorf("%d requests were cancelled, want the second", n)
		}
	})
}

// TestSecondRequestToTheSameHost: there is sense in it where there is no other
// place, or none that works.
func TestSecondRequestToTheSameHost(t *testing.T) {
	for n, asked := range map[int]string{1: "[2]", 2: "[2 0]"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRacing(t, n, 10*time.Millisecond)
			if n == 2 { // find out that the second does not work
				r.servers[0].set(answer{err: errMissing})
				r.servers[1].set(answer{err: errTemporary})
				_, _ = r.read(t.Context())
				r.servers[0].set(answer{takes: 10 * time.Millisecond})
				_, _ = r.read(t.Context())
				r.asked()
			}
			r.servers[0].set(answer{takes: 60 * time.Millisecond})
			r.want(60*time.Millisecond, asked)
			r.hedges(1, 0)
			r.end()
		})
	}
}

// TestNoSecondRequest where nobody waits, where nothing is known of the
// place's pace, and while the request has yet to be sent.
func TestNoSecondRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRacing(t, 2, 10*time.Millisecond)
		r.servers[0].set(answer{turn: time.Minute, takes: 10 * time.Millisecond})
		r.want(time.Minute+10*time.Millisecond, "[1 0]")
		r.servers[0].set(answer{takes: time.Minute})
		for _, class := range []limit.Class{limit.Prefetch, limit.Background} {
			_, _ = r.read(limit.With(t.Context(), class))
		}
		r.hedges(0, 0)
		r.end()

		all := newServers(2)
		o := mirror.New(all, all, mirror.Options{})
		r = &racing{t, o, open(t, o, int64(len(content))), all}
		for range 16 {
			all[0].set(answer{takes: time.Minute})
			r.want(time.Minute, "[1 0]")
		}
		r.end()
	})
}

// TestShareOfSecondRequests: when a host stands still with many requests at
// once, a few that were saved up are sent twice; later on, one of 20.
func TestShareOfSecondRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRacing(t, 2, time.Millisecond)
		for range 200 {
			_, _ = r.read(t.Context())
		}
		r.asked()
		r.servers[0].set(answer{takes: time.Minute})
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() { _, _ = r.read(t.Context()) })
		}
		all.Wait()
		if got := r.asked(); got != "[64 4]" {
			t.Errorf("the servers were asked %s times", got)
		}
		for range 20 { // what is late now is what is slower than that
			for range 19 {
				r.servers[0].set(answer{takes: time.Millisecond})
				_, _ = r.read(t.Context())
			}
			r.servers[0].set(answer{takes: time.Hour})
			_, _ = r.read(t.Context())
		}
		if n := r.o.Stats().Hedges - 4; n < 15 || n > 20 {
			t.Errorf("of 400 requests, 20 of them late, %d were sent twice", n)
		}
		r.end()
	})
}

// TestFailuresInARace: a place that fails in a race is passed over like any
// other, and when both have failed the rest are asked.
func TestFailuresInARace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRacing(t, 3, 10*time.Millisecond)
		r.servers[0].set(answer{takes: 70 * time.Millisecond, err: errTemporary})
		r.servers[1].set(answer{takes: 100 * time.Millisecond})
		r.want(150*time.Millisecond, "[1 1 0]")
		r.want(100*time.Millisecond, "[0 1 0]")
		r.hedges(1, 1)
		r.end()

		r = newRacing(t, 3, 10*time.Millisecond)
		r.servers[0].set(answer{takes: 100 * time.Millisecond, err: errTemporary})
		r.servers[1].set(answer{takes: 20 * time.Millisecond, err: errTemporary})
		r.want(110*time.Millisecond, "[1 1 1]")
		r.want(10*time.Millisecond, "[0 0 1]")
		r.hedges(1, 0)
		r.end()
	})
}

// TestEndOfARace: a reader that gives up, and a blob that is closed, end both
// requests.
func TestEndOfARace(t *testing.T) {
	for _, want := range []error{context.Canceled, fs.ErrClosed} {
		synctest.Test(t, func(t *testing.T) {
			r := newRacing(t, 2, 10*time.Millisecond)
			for _, s := range r.servers {
				s.set(answer{takes: never})
			}
			ctx, cancel := context.WithCancel(t.Context())
			got := make(chan error)
			go func() {
				_, err := r.read(ctx)
				got <- err
			}()
			time.Sleep(time.Minute)
			synctest.Wait()
			if errors.Is(want, fs.ErrClosed) {
				r.end()
			}
			cancel()
			if err := <-got; !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
			if asked := r.asked(); asked != "[1 1]" {
				t.Errorf("the servers were asked %s times", asked)
			}
			if errors.Is(want, context.Canceled) {
				for _, s := range r.servers { // it spoke against nobody
					s.set(answer{takes: 10 * time.Millisecond})
				}
				r.want(10*time.Millisecond, "[1 0]")
				r.end()
			}
			if _, err := r.read(t.Context()); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("after Close: got %v", err)
			}
		})
	}
}
