// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/url"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// trail is where the redirects of a blob's URL lead.
type trail struct {
	*rangeget.Trail
	begun time.Time
}

const (
	// maxTrails bounds the redirects that are remembered. Signed URLs take
	// some 1 KiB.
	maxTrails = 1024

	// freshTrail is how long one is shared with whoever opens the blob. Signed
	// URLs are good for ten minutes and more; to try one that is not costs a
	// round trip.
	freshTrail = 5 * time.Minute
)

// trail returns the trail that begins at u, a fresh one if there is.
func (o *Opener) trail(u *url.URL) *rangeget.Trail {
	key, now := u.String(), time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	t, ok := o.trails[key]
	if ok && now.Sub(t.begun) < freshTrail {
		return t.Trail
	}
	for other := range o.trails {
		if ok || len(o.trails) < maxTrails {
			break
		}
		delete(o.trails, other) // any: those who have the blob open keep theirs
	}
	o.trails[key] = trail{rangeget.NewTrail(u), now}
	return o.trails[key].Trail
}
