// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stripe  = 1 << 20 // bytes that one worker of a load has for itself
	workers = 4

	// LoadSize is how large a disk must be for a load, in bytes. It must be
	// empty.
	LoadSize = workers * stripe
)

// A Load reads and writes a disk, and compares.
type Load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	step   chan struct{} // gets a value for every request answered

	mu      sync.Mutex // guards all below
	err     error
	count   int
	longest time.Duration
}

// StartLoad starts a load on a disk.
func StartLoad(t *testing.T, disk string) *Load {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	l := &Load{cancel: cancel, step: make(chan struct{}, 1)}
	for i := range workers {
		l.wg.Go(func() { l.work(ctx, f, int64(i)*stripe) })
	}
	go func() {
		l.wg.Wait()
		_ = f.Close()
	}()
	return l
}

// work overwrites random parts of a stripe and reads others.
func (l *Load) work(ctx context.Context, f *os.File, base int64) {
	rnd := rand.New(rand.NewPCG(uint64(base), 1))
	model := make([]byte, stripe)
	buf := alignedBuffer(64 << 10)
	for ctx.Err() == nil {
		off := rnd.Int64N(stripe/4096) * 4096
		p := buf[:min(4096*(1+rnd.IntN(16)), int(stripe-off))]
		start := time.Now()
		var err error
		if rnd.IntN(2) == 0 {
			fill(rnd, p)
			copy(model[off:], p)
			_, err = f.WriteAt(p, base+off)
		} else if _, err = f.ReadAt(p, base+off); err == nil && !bytes.Equal(p, model[off:][:len(p)]) {
			err = fmt.Errorf("wrong bytes in %d at %d", len(p), base+off)
		}
		if !l.done(time.Since(start), err) {
			return
		}
	}
}

func (l *Load) done(took time.Duration, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.Join(l.err, err)
	l.count++
	l.longest = max(l.longest, took)
	select {
	case l.step <- struct{}{}:
	default:
	}
	return err == nil
}

// Await waits for at least n requests to be answered from now on, or an error.
func (l *Load) Await(n int) {
	l.mu.Lock()
	goal := l.count + n
	l.mu.Unlock()
	for range l.step {
		l.mu.Lock()
		over := l.count >= goal || l.err != nil
		l.mu.Unlock()
		if over {
			return
		}
	}
}

// Stop ends the load. It fails the test if there was an error, or a wrong byte.
func (l *Load) Stop(t *testing.T) {
	t.Helper()
	l.cancel()
	l.wg.Wait()
	if l.err != nil {
		t.Error(l.err)
	}
	t.Logf("%d requests, the longest took %v", l.count, l.longest.Round(time.Millisecond))
}
