// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/tcmu"
	"github.com/overlaybd-go/overlaybd/cmd/internal/exporter"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// contentSize is what the file in the tests' image holds, in bytes.
const contentSize = 16 << 20

// onDisks runs test for each exporter whose devices outlive the daemon.
func onDisks(t *testing.T, test func(t *testing.T, m *machine)) {
	t.Helper()
	for _, k := range exporter.Kinds() {
		if k.Name == "fuse" {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			need.Root(t)
			need.Command(t, "mkfs.ext4")
			need.Capability(t, k.Name, k.Available())
			m := newMachine(t, k.Name)
			m.start()
			test(t, m)
		})
	}
}

// content returns what the file in the tests' image holds.
func content() []byte {
	b := make([]byte, contentSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// image makes a layer that holds an ext4 with one file, by way of a writable
// device, and returns the spec of a device that shows it, and the layer.
func (m *machine) image() (path, layer string) {
	m.t.Helper()
	up := spec.Upper{Data: m.file("data"), Index: m.file("index"), VSizeGB: 1}
	build := m.save("build", &spec.Volume{Upper: up})
	a := m.attach("build", build)
	m.command(need.Command(m.t, "mkfs.ext4"), "-q", "-O", "^has_journal", a.Path)
	dir := m.mount(a.Path, 0)
	if err := os.WriteFile(filepath.Join(dir, "file"), content(), 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.unmountAll()
	m.detach("build")
	layer = m.file("layer")
	if err := m.api.Seal(m.t.Context(), build, layer); err != nil {
		m.t.Fatal(err)
	}
	return m.save("image", &spec.Volume{Lowers: []spec.Lower{{File: layer}}, ResultFile: "result"}), layer
}

// mount mounts the file system of a disk until the test ends.
func (m *machine) mount(disk string, flags uintptr) (dir string) {
	m.t.Helper()
	dir = m.t.TempDir()
	if err := unix.Mount(disk, dir, "ext4", flags, ""); err != nil {
		m.t.Fatal("mount", disk, err)
	}
	m.mounts = append(m.mounts, dir)
	return dir
}

// unmountAll unmounts what is mounted, which nobody must use any more.
func (m *machine) unmountAll() {
	m.t.Helper()
	for _, dir := range m.mounts {
		if err := unix.Unmount(dir, 0); err != nil {
			m.t.Fatal("unmount", dir, err)
		}
	}
	m.mounts = nil
}

// A reader reads a file past the page cache, over and over, and compares.
type reader struct {
	f      *os.File
	cancel context.CancelFunc
	wg     sync.WaitGroup
	step   chan struct{} // gets a value for every read

	mu    sync.Mutex // guards all below
	count int
	err   error
}

func startReader(t *testing.T, name string) *reader {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &reader{f: f, cancel: cancel, step: make(chan struct{}, 1)}
	want := content()
	for i := range 4 {
		r.wg.Go(func() { r.read(ctx, want, uint64(i)) })
	}
	t.Cleanup(cancel)
	return r
}

func (r *reader) read(ctx context.Context, want []byte, seed uint64) {
	const size = 64 << 10
	buf := aligned(size)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for ctx.Err() == nil {
		off := rnd.Int64N(contentSize/size) * size
		_, err := r.f.ReadAt(buf, off)
		if err == nil && !bytes.Equal(buf, want[off:][:size]) {
			err = fmt.Errorf("wrong bytes at %d", off)
		}
		if r.done(err); err != nil {
			return
		}
	}
}

func (r *reader) done(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	r.err = errors.Join(r.err, err)
	select {
	case r.step <- struct{}{}:
	default:
	}
}

// await waits for some more reads, or an error.
func (r *reader) await() {
	r.mu.Lock()
	goal := r.count + 16
	r.mu.Unlock()
	for range r.step {
		r.mu.Lock()
		over := r.count >= goal || r.err != nil
		r.mu.Unlock()
		if over {
			return
		}
	}
}

func (r *reader) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	r.wg.Wait()
	if err := errors.Join(r.err, r.f.Close()); err != nil {
		t.Error("read:", err)
	}
	t.Log(r.count, "reads")
}

// aligned returns n bytes at an address that O_DIRECT accepts.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (page - 1)
	return b[skip:][:n:n]
}

// TestRestart: who reads a mounted image notices neither that the daemon is
// killed nor that it is stopped and started.
func TestRestart(t *testing.T) { onDisks(t, testRestart) }

func testRestart(t *testing.T, m *machine) {
	path, _ := m.image()
	a := m.attach("1", path)
	if a.File || a.Exporter != m.cfg.Blockd.Exporter || !strings.HasPrefix(a.Path, "/dev/") {
		t.Errorf("got %+v, want a disk", a)
	}
	if text, err := os.ReadFile(m.file("result")); err != nil || string(text) != "success" {
		t.Errorf("result file says %q, %v", text, err)
	}
	dir := m.mount(a.Path, unix.MS_RDONLY)
	r := startReader(t, filepath.Join(dir, "file"))
	for i := range 6 {
		r.await()
		if i%3 == 2 {
			m.stop()
		} else {
			m.kill()
		}
		m.start()
		if b := m.attach("1", path); b.Path != a.Path || b.State != blockapi.Serving {
			t.Fatalf("attached again: %+v, want the disk %s", b, a.Path)
		}
	}
	r.await()
	if err := m.api.Detach(t.Context(), "1"); err == nil {
		t.Error("detached while mounted")
	}
	r.stop(t)
	m.unmountAll()
	m.detach("1")
	m.wantNothing()
}

// TestLayerAway: the users of a device whose layer is away wait until it is
// back.
func TestLayerAway(t *testing.T) { onDisks(t, testLayerAway) }

func testLayerAway(t *testing.T, m *machine) {
	path, layer := m.image()
	a := m.attach("1", path)
	dir := m.mount(a.Path, unix.MS_RDONLY)
	r := startReader(t, filepath.Join(dir, "file"))
	r.await()
	m.kill()
	if err := os.Rename(layer, layer+".away"); err != nil {
		t.Fatal(err)
	}
	m.start()
	for a := m.await("1", blockapi.Suspended); !strings.Contains(a.Error, layer); a = m.await("1", blockapi.Suspended) {
		<-time.After(20 * time.Millisecond) // until it was tried
	}
	if err := os.Rename(layer+".away", layer); err != nil {
		t.Fatal(err)
	}
	if b := m.await("1", blockapi.Serving); b.Path != a.Path {
		t.Errorf("got %+v, want the disk %s", b, a.Path)
	}
	r.await()
	r.stop(t)
	m.unmountAll()
	m.detach("1")
	m.wantNothing()
}

// TestSpecGone: a device that belongs to nobody is removed, but not from under
// its users.
func TestSpecGone(t *testing.T) { onDisks(t, testSpecGone) }

func testSpecGone(t *testing.T, m *machine) {
	path, _ := m.image()
	m.mount(m.attach("1", path).Path, unix.MS_RDONLY)
	m.kill()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	m.start()
	for a := m.await("1", blockapi.Suspended); !strings.Contains(a.Error, "busy"); a = m.await("1", blockapi.Suspended) {
		<-time.After(20 * time.Millisecond)
	}
	m.unmountAll()
	m.await("1", "")
	m.wantNothing()
}

// TestWritesSurviveKill: what was written before the daemon was killed is
// there after it, though nobody has asked for it to be durable.
func TestWritesSurviveKill(t *testing.T) { onDisks(t, testWritesSurviveKill) }

func testWritesSurviveKill(t *testing.T, m *machine) {
	up := spec.Upper{Data: m.file("data"), Index: m.file("index"), VSizeGB: 1}
	path := m.save("writable", &spec.Volume{Upper: up})
	disk := m.attach("1", path).Path
	f, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 10
	buf, want := aligned(size), content()
	for i := range 8 {
		off := int64(i) * 1 << 20
		copy(buf, want[off:])
		if _, err := f.WriteAt(buf, off); err != nil {
			t.Fatal(err)
		}
		m.kill()
		m.start()
		for j := range i + 1 {
			off := int64(j) * 1 << 20
			if _, err := f.ReadAt(buf, off); err != nil || !bytes.Equal(buf, want[off:][:size]) {
				t.Fatalf("after kill %d, write %d is gone (%v)", i, j, err)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m.detach("1")
	m.wantNothing()
}

// TestForeign serves a device that another program makes and removes by
// itself, as the reference's attacher does, and the next daemon goes on.
func TestForeign(t *testing.T) {
	need.Root(t)
	need.Capability(t, "tcmu", tcmu.Available())
	m := newMachine(t, "auto") // which is TCMU then
	m.start()
	path, _ := m.image()
	target := makeForeign(t, "77", path+";77")
	if text, err := os.ReadFile(m.file("result")); err != nil || string(text) != "success" {
		t.Errorf("result file says %q, %v", text, err)
	}
	dir := m.mount(target.disk(t), unix.MS_RDONLY)
	r := startReader(t, filepath.Join(dir, "file"))
	r.await()
	m.kill()
	m.start()
	r.await()
	if a := m.await("77", blockapi.Serving); a.SpecPath != path {
		t.Errorf("got %+v, want the device of %s", a, path)
	}
	r.stop(t)
	m.unmountAll()
	target.remove(t)
	m.await("77", "")
	m.wantNothing()
}

// TestExporterChanges: disks made by the exporter of a former configuration
// are served, while new devices are files.
func TestExporterChanges(t *testing.T) { onDisks(t, testExporterChanges) }

func testExporterChanges(t *testing.T, m *machine) {
	need.FUSE(t)
	former := m.cfg.Blockd.Exporter
	path, _ := m.image()
	a := m.attach("1", path)
	r := startReader(t, filepath.Join(m.mount(a.Path, unix.MS_RDONLY), "file"))
	r.await()
	m.stop()
	m.configure("fuse")
	m.start()
	r.await()
	if b := m.attach("1", path); b.Path != a.Path || b.Exporter != former {
		t.Errorf("got %+v, want the disk %s", b, a.Path)
	}
	if b := m.attach("2", path); !b.File || b.Exporter != "fuse" {
		t.Errorf("got %+v, want a file", b)
	}
	r.stop(t)
	m.unmountAll()
	m.detach("1")
	m.wantNothing() // which also removes the other
}
