// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"net/url"
	"testing"
	"testing/synctest"
	"time"
)

// TestTrails are shared for a while, and no more than so many are kept.
func TestTrails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := New(Options{})
		defer func() { _ = o.Close() }()
		blob := &url.URL{Scheme: "https", Host: "host", Path: "/v2/r/blobs/x"}
		first := o.trail(blob)
		time.Sleep(freshTrail - time.Nanosecond)
		if o.trail(blob) != first {
			t.Error("a fresh trail is not shared")
		}
		time.Sleep(time.Nanosecond)
		if o.trail(blob) == first {
			t.Error("an old trail is shared")
		}
		for i := range 3 * maxTrails {
			o.trail(&url.URL{Scheme: "https", Host: "host", Path: fmt.Sprint("/", i)})
		}
		if n := len(o.trails); n != maxTrails {
			t.Errorf("%d trails are kept, want %d", n, maxTrails)
		}
	})
}
