// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestTrimmer: memory is freed once after each time of work, and not during it.
func TestTrimmer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bytes, tick atomic.Uint64
		var freed []uint64
		tr := &Trimmer{allocated: bytes.Load, free: func() { freed = append(freed, tick.Load()) }}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tr.Service().Run(ctx, func() {}) }()
		<-time.After(trimEvery / 2) // work is done between the ticks
		for range 12 {
			switch tick.Add(1) {
			case 1, 2, 7, 8:
				bytes.Add(100 << 20)
			default:
				bytes.Add(1 << 20)
			}
			<-time.After(trimEvery)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if want := []uint64{3, 9}; !slices.Equal(freed, want) {
			t.Errorf("freed at ticks %v, want %v", freed, want)
		}
	})
}

// TestTrimmerOfThisProcess: what is measured grows, and freeing does not fail.
func TestTrimmerOfThisProcess(t *testing.T) {
	tr := NewTrimmer()
	before := tr.allocated()
	kept = make([]byte, 8<<20)
	if grown := tr.allocated() - before; grown < 8<<20 {
		t.Errorf("allocated 8 MiB, of which %d bytes were noticed", grown)
	}
	tr.free()
}

var kept []byte // escapes
