// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// trimEvery is how often a Trimmer looks: twice a minute nobody notices.
	trimEvery = 30 * time.Second

	// idleBytes is how much a process allocates in that time that does nothing
	// but answer who asks how it is.
	idleBytes = 4 << 20
)

// A Trimmer gives memory back to the kernel when the process has become idle:
// the runtime keeps twice what is in use, and more of what a burst of work took,
// for as long as there is no reason to collect garbage.
type Trimmer struct {
	allocated func() uint64 // bytes, since the process started
	free      func()
}

// NewTrimmer returns a Trimmer of this process.
func NewTrimmer() *Trimmer { return &Trimmer{allocated, free} }

// Service returns the Trimmer as a service of a group.
func (t *Trimmer) Service() Service {
	return Service{Name: "trimmer", Run: t.run}
}

func (t *Trimmer) run(ctx context.Context, ready func()) error {
	ready()
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	busy := true
	for before := uint64(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := t.allocated()
		idle := now-before < idleBytes
		if idle && busy {
			t.free()
		}
		busy, before = !idle, now
	}
}

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func free() {
	runtime.GC() // what lies in a sync.Pool survives one
	debug.FreeOSMemory()
}
