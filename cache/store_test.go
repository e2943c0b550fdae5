// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
)

// zeros is a source of zeros.
type zeros struct{ size int64 }

func (z zeros) ReadAt(_ context.Context, p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}
func (z zeros) Size() int64  { return z.size }
func (z zeros) Close() error { return nil }

func openZeros(t testing.TB, size int64) *Blob {
	t.Helper()
	c, err := Open(Options{Dir: t.TempDir(), MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Blob(digest.FromString("zeros"), zeros{size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(b.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// TestDropBetweenWriteAndPublish crosses a Drop with the write of the very
// blocks: they must be gone from memory and from the record.
func TestDropBetweenWriteAndPublish(t *testing.T) {
	b := openZeros(t, 1<<20)
	s := b.s
	f := &fetch{s: s, b: b, first: 1, end: 3, off: s.geo.start(1), buf: &buffer{p: make([]byte, 2*s.geo.blockSize())}}
	s.mu.Lock()
	s.inflight = append(s.inflight, f)
	s.mu.Unlock()
	if err := s.put(f, 1, 3); err != nil {
		t.Fatal(err)
	}
	s.drop(s.geo.start(2), s.geo.start(2)+1)
	if err := s.publish(f, 1, 3); !errors.Is(err, errDropped) {
		t.Errorf("got %v, want %v", err, errDropped)
	}
	tags := make([]byte, 2*tagSize)
	if _, err := s.files.Load().tags.ReadAt(tags, tagOffset(1)); err != nil || string(tags) != string(make([]byte, 2*tagSize)) {
		t.Errorf("tags are %x, %v; want zeros", tags, err)
	}
	if s.onDisk(1) || s.onDisk(2) {
		t.Error("dropped blocks are shown to readers")
	}
}

// TestReadersNeverSeeHoles writes and evicts one chunk over and over under the
// eyes of readers.
func TestReadersNeverSeeHoles(t *testing.T) {
	b := openZeros(t, 1<<20)
	s := b.s
	ones := bytes.Repeat([]byte{1}, 1<<20)
	f := &fetch{s: s, b: b, end: chunkBlocks, buf: &buffer{p: ones}}
	var done atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for p := make([]byte, 1<<20); !done.Load(); {
				if n := s.readHit(p, 0); !bytes.Equal(p[:n], ones[:n]) {
					t.Error("read a hole")
					return
				}
			}
		})
	}
	for range 300 {
		if err := errors.Join(s.put(f, 0, chunkBlocks), s.publish(f, 0, chunkBlocks)); err != nil {
			t.Error(err)
		}
		runtime.Gosched()
		if freed := s.evict(s.files.Load(), 0, s.chunks.at(0)); freed < 1<<20 {
			t.Errorf("freed %d bytes, want 1 MiB", freed)
		}
	}
	done.Store(true)
	readers.Wait()
}

func TestBudgetServesDemandFirst(t *testing.T) {
	granted := func(t *ticket) bool {
		select {
		case <-t.ready:
			return true
		default:
			return false
		}
	}
	b := budget{limit: 100}
	low1, low2 := b.ask(25, true), b.ask(25, true)
	if !granted(low1) || granted(low2) {
		t.Fatal("prefetch must get a quarter and no more")
	}
	d1, d2, d3 := b.ask(25, false), b.ask(25, false), b.ask(25, false)
	waiting, small := b.ask(25, false), b.ask(1, false)
	if !granted(d1) || !granted(d2) || !granted(d3) || granted(waiting) || granted(small) {
		t.Fatal("demand must get the rest, in order")
	}
	b.promote(low2)
	b.giveBack(low1)
	if !granted(waiting) || granted(small) || granted(low2) {
		t.Fatal("the first in the queue is next")
	}
	b.giveBack(small) // gave up waiting
	b.giveBack(d1)
	if !granted(low2) {
		t.Fatal("a promoted prefetch is demand")
	}
	for _, x := range []*ticket{waiting, d2, d3, low2} {
		b.giveBack(x)
	}
	big, bigger, tiny := b.ask(60, false), b.ask(50, false), b.ask(1, true)
	if !granted(big) || granted(tiny) {
		t.Error("a prefetch must not overtake demand that waits")
	}
	for _, x := range []*ticket{big, bigger, tiny} {
		b.giveBack(x)
	}
	if b.held != 0 || b.heldLow != 0 {
		t.Errorf("%d bytes held after all is given back, %d by prefetches", b.held, b.heldLow)
	}
}
