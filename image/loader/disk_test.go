// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A disk is a volume with files, to be read over a slow network.
type disk struct {
	t testing.TB
	*backendtest.MemVolume
	fs   vfs.FileSystem
	dirs map[string]vfs.Ino

	mu    sync.Mutex // guards all below
	slow  bool
	asked []*request
}

// A request is for a part of a disk. Its answer comes when done is closed.
type request struct {
	off, n int64
	done   chan struct{}
}

func newDisk(t testing.TB) *disk {
	t.Helper()
	d := emptyDisk(t)
	d.must(ext4.Format(t.Context(), d, ext4.FormatOptions{}))
	fs, err := ext4.Open(t.Context(), d)
	d.must(err)
	return d.with(fs)
}

// newErofs returns a disk whose file system is EROFS.
func newErofs(t testing.TB) *disk {
	t.Helper()
	d := emptyDisk(t)
	d.must(erofs.Format(t.Context(), d, erofs.FormatOptions{}))
	fs, err := erofs.Open(t.Context(), d)
	d.must(err)
	return d.with(fs)
}

func emptyDisk(t testing.TB) *disk { return &disk{t: t, MemVolume: backendtest.NewMemVolume(1 << 30)} }

func (d *disk) with(fs vfs.FileSystem) *disk {
	d.fs, d.dirs = fs, map[string]vfs.Ino{"/": fs.Root()}
	return d
}

func (d *disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *disk) dir(name string) vfs.Ino {
	if ino, ok := d.dirs[name]; ok {
		return ino
	}
	ino, err := d.fs.Create(d.t.Context(), d.dir(path.Dir(name)), path.Base(name), vfs.Attr{Mode: syscall.S_IFDIR | 0o755})
	d.must(err)
	d.dirs[name] = ino
	return ino
}

func (d *disk) file(name string, data []byte) {
	d.t.Helper()
	ino, err := d.fs.Create(d.t.Context(), d.dir(path.Dir(name)), path.Base(name), vfs.Attr{Mode: syscall.S_IFREG | 0o755})
	d.must(err)
	w, err := d.fs.Writer(d.t.Context(), ino, int64(len(data)))
	d.must(err)
	_, err = w.Write(data)
	d.must(err)
	d.must(w.Close())
	d.must(d.fs.Sync(d.t.Context()))
}

func (d *disk) link(name, target string) {
	d.t.Helper()
	_, err := d.fs.Symlink(d.t.Context(), d.dir(path.Dir(name)), path.Base(name), target, vfs.Attr{})
	d.must(err)
	d.must(d.fs.Sync(d.t.Context()))
}

// copy copies a file of the machine, and the link by which it is named.
func (d *disk) copy(name string) {
	d.t.Helper()
	real, err := filepath.EvalSymlinks(name)
	d.must(err)
	dir, err := filepath.EvalSymlinks(filepath.Dir(name))
	d.must(err)
	if _, err := d.fs.Lookup(d.t.Context(), d.dir(filepath.Dir(real)), filepath.Base(real)); err != nil {
		d.file(real, readFile(d.t, real))
	}
	if name := filepath.Join(dir, filepath.Base(name)); name != real {
		d.link(name, real)
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// extents returns where the file of that name lies.
func (d *disk) extents(name string) []vfs.Extent {
	d.t.Helper()
	r, err := openFiles(d.t.Context(), d)
	d.must(err)
	ino, _, ok := newTree(r).find(d.t.Context(), name)
	if !ok {
		d.t.Fatalf("no file %s", name)
	}
	all, err := r.Extents(d.t.Context(), ino, 0, 1<<40)
	d.must(err)
	return all
}

// Far implements Volume.
func (d *disk) Far() bool { return true }

// Expect implements Volume. It takes until answer is called where the disk is
// slow.
func (d *disk) Expect(ctx context.Context, off, n int64) error {
	r := &request{off, n, make(chan struct{})}
	d.mu.Lock()
	d.asked = append(d.asked, r)
	slow := d.slow
	d.mu.Unlock()
	if !slow {
		return nil
	}
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// answer answers requests, of which it returns the number.
func (d *disk) answer() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, r := range d.asked {
		select {
		case <-r.done:
		default:
			close(r.done)
			n++
		}
	}
	return n
}

// wasAsked reports whether all of the file of that name was asked for.
func (d *disk) wasAsked(name string) bool {
	d.t.Helper()
	for _, e := range d.extents(name) {
		if !d.covers(e) {
			return false
		}
	}
	return true
}

func (d *disk) covers(e vfs.Extent) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := e.Off
	for more := true; more && at < e.Off+e.Len; {
		more = false
		for _, r := range d.asked {
			if r.off <= at && at < r.off+r.n {
				at, more = r.off+r.n, true
			}
		}
	}
	return at >= e.Off+e.Len
}

func (d *disk) requests() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.asked)
}
