// SPDX-License-Identifier: Apache-2.0

package shape

import "time"

// The window of a connection of Linux's, in bytes.
const (
	firstWindow = 10 * 1460 // segments, RFC 6928
	mostWindow  = 4 << 20   // net.ipv4.tcp_wmem
)

// rampIdle is how long a connection may be idle before its window is the first
// again: a few times the retransmission timeout, RFC 5681.
const rampIdle = time.Second

// A ramp is TCP's slow start: how much a connection carries before it must hear
// that it arrived, twice as much each time. The zero value is a new connection.
// It is used by one answer at a time, as the connection is.
type ramp struct {
	window, left int       // bytes of a round trip, and those not sent in this one
	next         time.Time // when the next begins
	used         time.Time // when bytes were last sent
}

// send gives n bytes to the connection at a time, and returns how many it takes
// and when.
func (r *ramp) send(rtt time.Duration, at time.Time, n int) (int, time.Time) {
	switch {
	case at.Sub(r.used) > rampIdle:
		r.window, r.next = firstWindow, at
	case r.left == 0:
		r.window = min(2*r.window, mostWindow)
		if at.Before(r.next) {
			at = r.next
		}
	}
	if !at.Before(r.next) {
		r.left, r.next = r.window, at.Add(rtt)
	}
	n = min(n, r.left)
	r.left -= n
	r.used = at
	return n, at
}
