// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"slices"
	"sync"
	"time"
)

const (
	window   = 64                    // answers that say how fast a host is
	enough   = 16                    // of which there must be so many
	soonest  = 50 * time.Millisecond // before which no answer is late: a lost packet costs 200 ms and more
	share    = 0.05                  // of the requests that wait for a host's answer may be sent twice
	maxSaved = 4                     // requests sent twice in a row, after a time without any
)

// pace is how soon a host has begun to answer lately, and how many requests to
// it may be sent to another one as well.
type pace struct {
	mu     sync.Mutex // guards what follows
	recent [window]time.Duration
	n      int     // answers so far; the latest is recent[(n-1)%window]
	saved  float64 // requests that may be sent twice
}

func newPace() pace { return pace{saved: 1} }

// answered notes how long the host took to begin an answer.
func (p *pace) answered(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recent[p.n%window] = took
	p.n++
}

// late returns after what time an answer is late: an eighth more than what 19
// of 20 took, since where all take about the same, the twentieth is no slower
// than the rest. It is false where that is not known.
func (p *pace) late() (time.Duration, bool) {
	p.mu.Lock()
	recent, n := p.recent, min(p.n, window)
	p.mu.Unlock()
	if n < enough {
		return 0, false
	}
	slices.Sort(recent[:n])
	return max(recent[n*19/20]*9/8, soonest), true
}

// save counts a request that a second one may be sent for.
func (p *pace) save() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saved = min(p.saved+share, maxSaved)
}

// spend reports whether a request may be sent twice.
func (p *pace) spend() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.saved < 1 {
		return false
	}
	p.saved--
	return true
}
