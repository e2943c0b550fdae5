// SPDX-License-Identifier: Apache-2.0

package shape

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// A Request is one request that a Proxy has served.
type Request struct {
	Endpoint Endpoint
	Method   string
	Path     string
	Range    string // as the header has it
	Status   int    // 0 before there is an answer
	Conn     int64  // number of the connection
	Opened   bool   // the request was the connection's first
	Trips    int    // round trips it cost, those of a new connection included
	Bytes    int64  // of the answer's body

	Start time.Time // when the client sent it
	First time.Time // when the client got the header of the answer
	End   time.Time // when the client got its last byte

	over bool
}

// A Log is the requests of a client.
type Log []Request

// A Summary is what a log says about a part of its client's time.
type Summary struct {
	Requests    int   // that began in it
	Connections int   // that they opened
	Bytes       int64 // of their bodies

	// At each moment some answer is arriving, or one is waited for, or nothing
	// is under way.
	Transfer time.Duration
	Waiting  time.Duration
	Idle     time.Duration
}

// Summarize returns the summary of the time from one moment to another.
func (l Log) Summarize(from, to time.Time) Summary {
	var s Summary
	var transfers, requests []span
	for _, q := range l {
		if !q.Start.Before(from) && q.Start.Before(to) {
			s.count(q)
		}
		requests = append(requests, span{q.Start, q.End})
		if !q.First.IsZero() {
			transfers = append(transfers, span{q.First, q.End})
		}
	}
	all := to.Sub(from)
	s.Transfer = covered(transfers, from, to)
	busy := covered(requests, from, to)
	s.Waiting, s.Idle = busy-s.Transfer, all-busy
	return s
}

func (s *Summary) count(q Request) {
	s.Requests++
	s.Bytes += q.Bytes
	if q.Opened {
		s.Connections++
	}
}

// Chain returns the longest chain of requests each of which began when the one
// before it had ended, and so may depend on it.
func (l Log) Chain() Log {
	byStart := slices.Clone(l)
	slices.SortStableFunc(byStart, func(a, b Request) int { return cmp.Or(a.Start.Compare(b.Start), a.End.Compare(b.End)) })
	byEnd := make([]int, len(l)) // indices into byStart
	for i := range byEnd {
		byEnd[i] = i
	}
	slices.SortStableFunc(byEnd, func(i, j int) int { return byStart[i].End.Compare(byStart[j].End) })

	const none = -1
	depth, before := make([]int, len(l)), make([]int, len(l))
	last, deepest, ended := none, none, 0 // the deepest that has ended, and of all
	for i, q := range byStart {
		for ; ended < len(byEnd) && byEnd[ended] < i && !byStart[byEnd[ended]].End.After(q.Start); ended++ {
			if j := byEnd[ended]; last == none || depth[j] > depth[last] {
				last = j
			}
		}
		depth[i], before[i] = 1, last
		if last != none {
			depth[i] += depth[last]
		}
		if deepest == none || depth[i] > depth[deepest] {
			deepest = i
		}
	}
	var chain Log
	for i := deepest; i != none; i = before[i] {
		chain = append(chain, byStart[i])
	}
	slices.Reverse(chain)
	return chain
}

// Trips returns the round trips that the requests of l cost.
func (l Log) Trips() (n int) {
	for _, q := range l {
		n += q.Trips
	}
	return n
}

// A span is the time from start to end.
type span struct{ start, end time.Time }

// covered returns how much of the time from one moment to another lies in one
// of the spans, at least.
func covered(spans []span, from, to time.Time) (d time.Duration) {
	slices.SortFunc(spans, func(a, b span) int { return a.start.Compare(b.start) })
	for _, s := range spans {
		if s.start.Before(from) {
			s.start = from
		}
		if s.end.After(to) {
			s.end = to
		}
		if s.end.After(s.start) {
			d += s.end.Sub(s.start)
			from = s.end
		}
	}
	return d
}

// A recorder writes a log.
type recorder struct {
	mu  sync.Mutex // guards all, the requests too
	all []*Request
}

func (r *recorder) begin(q Request) *Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	q.Start = time.Now()
	r.all = append(r.all, &q)
	return &q
}

func (r *recorder) header(q *Request, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q.Status = status
	q.First = time.Now()
	q.End = q.First
}

func (r *recorder) sent(q *Request, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q.Bytes += int64(n)
	q.End = time.Now()
}

func (r *recorder) finish(q *Request, endsNow bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if endsNow {
		q.End = time.Now()
	}
	q.over = true
}

func (r *recorder) log() Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	l := make(Log, len(r.all))
	for i, q := range r.all {
		l[i] = *q
		if !q.over {
			l[i].End = now
		}
	}
	return l
}

func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = nil
}
