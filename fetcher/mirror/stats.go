// SPDX-License-Identifier: Apache-2.0

package mirror

import "sync/atomic"

// Stats counts what an Opener and its blobs did.
type Stats struct {
	Failures  int64 // requests that failed at a place
	Throttled int64 // of them, those whose host asked to be left alone
	Hedges    int64 // late requests that were sent a second time
	HedgesWon int64 // of them, those whose second answer came first
}

// counters is a Stats being counted.
type counters struct {
	failures, throttled, hedges, hedgesWon atomic.Int64
}

// Stats returns what o has counted.
func (o *Opener) Stats() Stats {
	return Stats{
		Failures:  o.count.failures.Load(),
		Throttled: o.count.throttled.Load(),
		Hedges:    o.count.hedges.Load(),
		HedgesWon: o.count.hedgesWon.Load(),
	}
}
