// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/uring"
)

// A fakeRing is a ring without a kernel. What the test sends comes out of it as
// completions, and what the queue answers the test receives.
type fakeRing struct {
	q       *queue
	queued  int
	cmds    [64][80]byte
	poll    [1]unix.PollFd
	word    [8]byte
	answers chan answer
	enters  atomic.Int32 // that submitted something
	mode    uring.Mode   // of the last of them

	mu   sync.Mutex // guards all below
	done []completion
	sent int // of done, how many were taken
}

type completion struct {
	user   uint64
	result int32
}

type answer struct {
	tag    int
	result int32
}

func (r *fakeRing) Command(int, uint32, uint64) []byte {
	r.queued++
	return r.cmds[r.queued-1][:]
}

func (r *fakeRing) Read(int, *uint64, uint64) {}

func (r *fakeRing) Enter(m uring.Mode) error {
	if r.queued > 0 {
		r.enters.Add(1)
		r.mode = m
	}
	for i := range r.queued {
		ne := binary.NativeEndian
		r.answers <- answer{int(ne.Uint16(r.cmds[i][2:])), int32(ne.Uint32(r.cmds[i][4:]))}
	}
	r.queued = 0
	if m != uring.Wait || r.pending() {
		return nil
	}
	r.poll[0] = unix.PollFd{Fd: int32(r.q.wake), Events: unix.POLLIN}
	for {
		if n, err := unix.Poll(r.poll[:], -1); n == 1 && err == nil {
			break
		}
	}
	_, err := unix.Read(r.q.wake, r.word[:])
	r.complete(wakeUser, 8)
	return err
}

func (r *fakeRing) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent < len(r.done)
}

func (r *fakeRing) complete(user uint64, result int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = append(r.done, completion{user, result})
}

func (r *fakeRing) Completion() (user uint64, result int32, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sent == len(r.done) {
		r.done, r.sent = r.done[:0], 0
		return 0, 0, false
	}
	c := r.done[r.sent]
	r.sent++
	return c.user, c.result, true
}

func (r *fakeRing) Close() error { return nil }

// send makes the kernel hand over a request, or the end of a tag.
func (r *fakeRing) send(tag int, result int32) {
	r.complete(uint64(tag), result)
	r.q.rouse()
}

// put describes the request that a tag is about to hold.
func (r *fakeRing) put(tag int, req driver.Request) {
	d := r.q.descs[tag*24:]
	op := uint32(req.Op)
	if req.FUA {
		op |= 1 << 13
	}
	binary.NativeEndian.PutUint32(d, op)
	binary.NativeEndian.PutUint32(d[4:], uint32(req.Len>>9))
	binary.NativeEndian.PutUint64(d[8:], uint64(req.Off>>9))
}

const testDepth = 8

// newFake returns a queue on a fake ring, that has asked for requests.
func newFake(t *testing.T, h handler) (*queue, *fakeRing) {
	t.Helper()
	q, err := newQueue(0, charFile(t), testDepth, driver.UserCopy, h)
	if err != nil {
		t.Fatal(err)
	}
	r := &fakeRing{q: q, answers: make(chan answer, 64), done: make([]completion, 0, 64)}
	q.ring = r
	q.descs, err = unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.close(); err != nil {
			t.Error(err)
		}
	})
	if err := q.start(); err != nil {
		t.Fatal(err)
	}
	for tag := range testDepth {
		if got := <-r.answers; got != (answer{tag, 0}) {
			t.Errorf("asked with %+v for the first request of tag %d", got, tag)
		}
	}
	return q, r
}

// charFile returns a file that takes and gives data where the character device
// does.
func charFile(t *testing.T) (fd int) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "char"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return int(f.Fd())
}

// run serves the queue until the test ends, and returns what serve does.
func run(t *testing.T, q *queue) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- q.serve() })
	t.Cleanup(func() {
		q.stop()
		wg.Wait()
	})
	return ended
}

// TestQueueAnyOrder holds one request, and has all others answered.
func TestQueueAnyOrder(t *testing.T) {
	held := make(chan struct{})
	q, r := newFake(t, func(s *slot) int32 {
		if s.tag == 0 {
			<-held
		}
		return int32(100 + s.tag)
	})
	run(t, q)
	for tag := range testDepth {
		r.send(tag, 0)
	}
	for range testDepth - 1 {
		if got := <-r.answers; got.tag == 0 || got.result != int32(100+got.tag) {
			t.Errorf("answer %+v", got)
		}
	}
	close(held)
	if got := <-r.answers; got != (answer{0, 100}) {
		t.Errorf("answer %+v to the request that was held", got)
	}
}

// TestQueueBatch has the answers to many requests submitted at once.
func TestQueueBatch(t *testing.T) {
	q, r := newFake(t, func(*slot) int32 { return 0 })
	for tag := range testDepth {
		r.complete(uint64(tag), 0)
	}
	if err := q.take(); err != nil {
		t.Fatal(err)
	}
	q.serving.Wait()
	before := r.enters.Load()
	ended := run(t, q)
	for range testDepth {
		<-r.answers
	}
	q.stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := r.enters.Load() - before; got != 1 {
		t.Errorf("%d system calls for %d answers, want one", got, testDepth)
	}
}

// TestQueueStop stops a queue: what is under way is answered first, and what
// comes meanwhile left to the next server.
func TestQueueStop(t *testing.T) {
	entered, held := make(chan int, testDepth), make(chan struct{})
	q, r := newFake(t, func(s *slot) int32 {
		entered <- s.tag
		<-held
		return 1
	})
	ended := run(t, q)
	r.send(3, 0)
	<-entered
	q.stop()
	r.send(4, 0)
	close(held)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := <-r.answers; got != (answer{3, 1}) {
		t.Errorf("answer %+v, want that of tag 3", got)
	}
	select {
	case got := <-r.answers:
		t.Errorf("answer %+v after the queue was stopped", got)
	case tag := <-entered:
		t.Errorf("request of tag %d served after the queue was stopped", tag)
	default:
	}
}

// TestQueueStopFull stops a queue all of whose tags have got a request: one is
// given back, unanswered by the kernel, which notices by it that the thread is
// gone.
func TestQueueStopFull(t *testing.T) {
	q, r := newFake(t, func(s *slot) int32 { return int32(100 + s.tag) })
	q.stop()
	for tag := range testDepth {
		r.send(tag, 0)
	}
	if err := q.take(); err != nil {
		t.Fatal(err)
	}
	if err := <-run(t, q); err != nil {
		t.Error(err)
	}
	if got := <-r.answers; got != (answer{testDepth - 1, 100 + testDepth - 1}) {
		t.Errorf("answer %+v, want that of the last tag", got)
	}
	if len(r.answers) > 0 || r.mode != uring.Submit {
		t.Errorf("%d more answers; entered the ring with mode %d, want %d", len(r.answers), r.mode, uring.Submit)
	}
}

// TestQueueOver ends with the device, once what is under way is answered.
func TestQueueOver(t *testing.T) {
	entered, held := make(chan struct{}), make(chan struct{})
	q, r := newFake(t, func(*slot) int32 {
		close(entered)
		<-held
		return 0
	})
	ended := run(t, q)
	r.send(0, 0)
	<-entered
	for tag := range testDepth {
		if tag != 0 {
			r.send(tag, driver.NoDevice)
		}
	}
	close(held)
	if got := <-r.answers; got.tag != 0 {
		t.Errorf("answer %+v", got)
	}
	r.send(0, driver.NoDevice)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestQueueRefused reports what the driver minds.
func TestQueueRefused(t *testing.T) {
	q, r := newFake(t, func(*slot) int32 { return 0 })
	ended := run(t, q)
	r.send(5, -int32(unix.EINVAL))
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "queue 0, tag 5: invalid") {
		t.Errorf("serve = %v, want an error that names queue and tag", err)
	}
}

// TestQueueDamaged answers a request that makes no sense with an error.
func TestQueueDamaged(t *testing.T) {
	q, r := newFake(t, func(*slot) int32 { return 0 })
	run(t, q)
	binary.NativeEndian.PutUint64(q.descs[8:], 1<<63)
	r.send(0, 0)
	if got := <-r.answers; got != (answer{0, -int32(unix.EIO)}) {
		t.Errorf("answer %+v, want EIO", got)
	}
}

// TestQueueBusy sends requests as fast as they are answered.
func TestQueueBusy(t *testing.T) {
	q, r := newFake(t, func(s *slot) int32 { return int32(s.req.Len) })
	run(t, q)
	for tag := range testDepth {
		r.put(tag, driver.Request{Op: driver.Read, Len: 512 * (1 + tag)})
		r.send(tag, 0)
	}
	for range 2000 {
		got := <-r.answers
		if want := int32(512 * (1 + got.tag)); got.result != want {
			t.Errorf("answer %+v, want %d", got, want)
		}
		r.send(got.tag, 0)
	}
	for range testDepth {
		<-r.answers
	}
}

// TestQueueNoAllocations serves reads and writes from the ring to the volume
// and back: a request costs no allocation, and its data lands where the kernel
// wants it.
func TestQueueNoAllocations(t *testing.T) {
	v := backendtest.NewMemVolume(1 << 20)
	want := append(bytes.Repeat([]byte{0}, 4095), 'x')
	if _, err := v.WriteAt(t.Context(), want, 8192); err != nil {
		t.Fatal(err)
	}
	b := newBuffers()
	d := (&Exporter{buffers: b}).newDevice(t.Context(), "device", v)
	defer d.cancel()
	q, r := newFake(t, d.handle)
	run(t, q)
	if _, err := unix.Pwrite(q.char, want, driver.DataOffset(0, 1)); err != nil {
		t.Fatal(err)
	}
	r.put(0, driver.Request{Op: driver.Read, Off: 8192, Len: 4096})
	r.put(1, driver.Request{Op: driver.Write, Off: 65536, Len: 4096, FUA: true})
	got := testing.AllocsPerRun(200, func() {
		for tag := range 2 {
			r.send(tag, 0)
		}
		for range 2 {
			if a := <-r.answers; a.result != 4096 {
				t.Errorf("answer %+v, want 4096 bytes", a)
			}
		}
	})
	if got != 0 && !raceEnabled {
		t.Errorf("%v allocations per request", got)
	}
	p := make([]byte, 4096)
	if _, err := unix.Pread(q.char, p, driver.DataOffset(0, 0)); err != nil || !bytes.Equal(p, want) {
		t.Errorf("read to the kernel: %v, or wrong bytes", err)
	}
	if _, err := v.ReadAt(t.Context(), p, 65536); err != nil || !bytes.Equal(p, want) {
		t.Errorf("written to the volume: %v, or wrong bytes", err)
	}
	if n := b.lent.Load(); n != 0 {
		t.Errorf("%d buffers are not given back", n)
	}
}
