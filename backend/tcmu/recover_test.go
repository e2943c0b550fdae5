// SPDX-License-Identifier: Apache-2.0

package tcmu_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
)

var kills = flag.Int("kills", 20, "how often to kill a process that serves a device")

const (
	stripe  = 1 << 20 // bytes that one worker of a load has for itself
	workers = 4
)

// TestKill kills the process that serves a device, over and over, under reads
// and writes that are verified: nobody may see an error or a wrong byte.
func TestKill(t *testing.T) {
	needTCMU(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kill"), make([]byte, workers*stripe), 0o600); err != nil {
		t.Fatal(err)
	}
	c := startChild(t, "serve", dir)
	disk := c.line(t)
	l := startLoad(t, disk)
	for range *kills {
		if got := c.line(t); got != "ready" {
			t.Fatalf("the child says %q", got)
		}
		l.await(2 * workers)
		c.kill(t)
		c.wait()
		c = startChild(t, "serve", dir)
	}
	c.line(t)
	l.stop(t)
	c.kill(t)
	c.wait()
	removeAll(t, dir)
}

// removeAll takes over what a child has left and removes it.
func removeAll(t *testing.T, dir string) {
	t.Helper()
	e := newExporter(t, tcmu.Options{})
	devices, err := e.Recover(t.Context(), func(_ context.Context, id string) (backend.Volume, error) {
		return openFile(filepath.Join(dir, id))
	})
	if err != nil || len(devices) != 1 {
		t.Errorf("recovered %d devices, %v, want one", len(devices), err)
	}
	for _, d := range devices {
		if err := d.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A load reads and writes a disk, and compares.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	step   chan struct{} // gets a value for every request answered

	mu      sync.Mutex // guards all below
	err     error
	count   int
	longest time.Duration
}

func startLoad(t *testing.T, disk string) *load {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel, step: make(chan struct{}, 1)}
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
func (l *load) work(ctx context.Context, f *os.File, base int64) {
	rnd := rand.New(rand.NewPCG(uint64(base), 1))
	model := make([]byte, stripe)
	buf := aligned(64 << 10)
	for ctx.Err() == nil {
		off := rnd.Int64N(stripe/4096) * 4096
		p := buf[:min(4096*(1+rnd.IntN(16)), int(stripe-off))]
		start := time.Now()
		var err error
		if rnd.IntN(2) == 0 {
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
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

func (l *load) done(took time.Duration, err error) bool {
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

// await waits for at least n requests to be answered from now on, or an error.
func (l *load) await(n int) {
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

func (l *load) stop(t *testing.T) {
	t.Helper()
	l.cancel()
	l.wg.Wait()
	if l.err != nil {
		t.Error(l.err)
	}
	t.Logf("%d requests, the longest took %v", l.count, l.longest.Round(time.Millisecond))
}

// aligned returns n bytes at an address that O_DIRECT accepts.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (page - 1)
	return b[skip:][:n:n]
}

// TestKillWhileMaking kills a process that makes and removes devices: the next
// one finds and removes whatever is left.
func TestKillWhileMaking(t *testing.T) {
	needTCMU(t)
	for i := range 4 {
		c := startChild(t, "churn", t.TempDir())
		for range 1 + i {
			c.line(t)
		}
		c.kill(t)
		e, err := tcmu.New(tcmu.Options{}) // lets the dead go
		if err != nil {
			t.Fatal(err)
		}
		devices, err := e.Recover(t.Context(), func(context.Context, string) (backend.Volume, error) {
			return backendtest.NewMemVolume(1 << 20), nil
		})
		if err != nil {
			t.Error(err)
		}
		c.wait()
		for _, d := range devices {
			if err := d.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t)
	}
}

// checkNothingLeft fails if there are kernel objects.
func checkNothingLeft(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{
		"/sys/kernel/config/target/core/user_*",
		"/sys/kernel/config/target/loopback/naa.*",
		"/sys/class/uio/uio*",
	} {
		if left, err := filepath.Glob(pattern); len(left) > 0 || err != nil {
			t.Errorf("left: %q, %v", left, err)
		}
	}
}

// TestAbandon hands a device from one exporter to the next while it is read.
func TestAbandon(t *testing.T) {
	needTCMU(t)
	first, err := tcmu.New(tcmu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "abandon")
	if err := os.WriteFile(name, make([]byte, workers*stripe), 0o600); err != nil {
		t.Fatal(err)
	}
	same := func(context.Context, string) (backend.Volume, error) { return openFile(name) }
	v, err := openFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := first.Export(t.Context(), "abandon", v)
	if err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, d.Path())
	l.await(workers)
	if err := first.Abandon(); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	if err := v.Sync(t.Context()); d.Err() == nil || !errors.Is(err, os.ErrClosed) {
		t.Errorf("abandoned device: Err() = %v, and its volume answers %v", d.Err(), err)
	}
	second := newExporter(t, tcmu.Options{})
	wrong := func(context.Context, string) (backend.Volume, error) { return backendtest.NewMemVolume(512), nil }
	if devices, err := second.Recover(t.Context(), wrong); err == nil || len(devices) > 0 {
		t.Errorf("recovered %d devices with a volume of another size, %v", len(devices), err)
	}
	devices, err := second.Recover(t.Context(), same)
	if err != nil || len(devices) != 1 || devices[0].ID() != "abandon" || devices[0].Path() != d.Path() {
		t.Fatalf("recovered %v, %v, want the device", devices, err)
	}
	l.await(4 * workers)
	l.stop(t)
	if again, err := second.Recover(t.Context(), same); err != nil || len(again) != 0 {
		t.Errorf("recovered %d devices twice, %v", len(again), err)
	}
}
