// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func open(t *testing.T, d *fuse.Device, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(d.Path(), flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestByteWrites asks that the file takes writes of any bytes, as a block
// device does through its page cache.
func TestByteWrites(t *testing.T) {
	need.FUSE(t)
	const size = 8 << 10
	v, model := backendtest.NewMemVolume(size), bytes.Repeat([]byte{'x'}, size)
	d := export(t, newExporter(t), "bytes", v)
	f := open(t, d, os.O_RDWR)
	fallocate := func(mode uint32) func(off int64, p []byte) error {
		return func(off int64, p []byte) error {
			clear(p)
			return unix.Fallocate(int(f.Fd()), mode, off, int64(len(p)))
		}
	}
	write := func(off int64, p []byte) error {
		_, err := f.WriteAt(p, off)
		return err
	}
	if err := write(0, model); err != nil {
		t.Fatal(err)
	}
	punch := fallocate(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	zero := fallocate(unix.FALLOC_FL_ZERO_RANGE)
	for _, c := range []struct {
		name   string
		off, n int64
		do     func(off int64, p []byte) error
	}{
		{"write in a sector", 3, 5, write},
		{"write over sectors", 700, 1500, write},
		{"write the last byte", size - 1, 1, write},
		{"punch in a sector", 1030, 100, punch},
		{"punch up to a sector", 1536, 100, punch},
		{"punch over sectors", 2100, 1700, punch},
		{"punch sectors", 4096, 1024, punch},
		{"zero over sectors", 6000, 1001, zero},
		{"zero to the end", 7000, size - 7000, zero},
	} {
		p := bytes.Repeat([]byte{byte('a' + c.off%26)}, int(c.n))
		if err := c.do(c.off, p); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		copy(model[c.off:], p)
		got := make([]byte, size)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
			t.Fatalf("%s: read back wrong (%v)", c.name, err)
		}
	}
	got := make([]byte, size)
	if _, err := v.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, model) {
		t.Errorf("the volume holds something else (%v)", err)
	}
}

// TestLargeRequests asks that 1 MiB comes in one request.
func TestLargeRequests(t *testing.T) {
	need.FUSE(t)
	e := newExporter(t)
	for name, readOnly := range map[string]bool{"read-only": true, "writable": false} {
		v := backendtest.NewFaultVolume(backendtest.NewMemVolume(4 << 20))
		var mu sync.Mutex // guards largest
		largest := make(map[backendtest.Op]int64)
		v.Set(func(_ context.Context, op backendtest.Op, _, n int64) error {
			mu.Lock()
			defer mu.Unlock()
			largest[op] = max(largest[op], n)
			return nil
		})
		want := map[backendtest.Op]int64{backendtest.Read: 1 << 20}
		buf := make([]byte, 1<<20)
		if readOnly {
			f := open(t, export(t, e, name, backendtest.ReadOnly(v)), os.O_RDONLY|unix.O_DIRECT)
			if _, err := f.ReadAt(buf, 1<<20); err != nil {
				t.Error(err)
			}
		} else {
			f := open(t, export(t, e, name, v), os.O_RDWR)
			_, errRead := f.ReadAt(buf, 1<<20)
			_, errWrite := f.WriteAt(buf, 1<<20)
			if err := errors.Join(errRead, errWrite); err != nil {
				t.Error(err)
			}
			want[backendtest.Write] = 1 << 20
		}
		mu.Lock()
		if diff := cmp.Diff(want, largest); diff != "" {
			t.Errorf("largest requests to a %s device (-want +got):\n%s", name, diff)
		}
		mu.Unlock()
	}
}

// TestRefusals names what the file does not do, and how it says so.
func TestRefusals(t *testing.T) {
	need.FUSE(t)
	const size = 1 << 20
	e := newExporter(t)
	full := backendtest.NewFaultVolume(backendtest.NewMemVolume(size))
	rw := open(t, export(t, e, "rw", full), os.O_RDWR)
	ro := export(t, e, "ro", backendtest.ReadOnly(backendtest.NewMemVolume(size)))
	fallocate := func(mode uint32, off, n int64) error { return unix.Fallocate(int(rw.Fd()), mode, off, n) }
	full.Set(func(_ context.Context, op backendtest.Op, _, _ int64) error {
		if op == backendtest.Write {
			return errors.Join(errors.New("allocate block"), unix.ENOSPC)
		}
		return nil
	})
	for name, c := range map[string]struct{ got, want error }{
		"shrink":           {rw.Truncate(512), unix.EINVAL},
		"grow":             {rw.Truncate(2 * size), unix.EINVAL},
		"same size":        {rw.Truncate(size), nil},
		"allocate":         {fallocate(0, 0, 4096), unix.EOPNOTSUPP},
		"collapse":         {fallocate(unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), unix.EOPNOTSUPP},
		"zero past end":    {fallocate(unix.FALLOC_FL_ZERO_RANGE, size-512, 1024), unix.EINVAL},
		"write past end":   {second(rw.WriteAt([]byte("x"), size)), unix.ENOSPC},
		"no space":         {second(rw.WriteAt([]byte("x"), 0)), unix.ENOSPC},
		"open ro to write": {second(os.OpenFile(ro.Path(), os.O_WRONLY, 0)), unix.EROFS},
		"other name":       {second(os.Stat(filepath.Join(filepath.Dir(ro.Path()), "x"))), unix.ENOENT},
		"new file":         {os.WriteFile(filepath.Join(filepath.Dir(ro.Path()), "x"), nil, 0o600), unix.EROFS},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	if names, err := os.ReadDir(filepath.Dir(ro.Path())); err != nil || len(names) != 1 || names[0].Name() != "block" {
		t.Errorf("directory lists %v, %v", names, err)
	}
	if st, err := os.Stat(ro.Path()); err != nil || st.Mode() != 0o400 || st.Size() != size {
		t.Errorf("stat of a read-only device = %v, %v", st, err)
	}
	if st, err := rw.Stat(); err != nil || st.Mode() != 0o600 {
		t.Errorf("stat of a writable device = %v, %v", st, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestExportRefusals(t *testing.T) {
	need.FUSE(t)
	e := newExporter(t)
	for _, id := range []string{"", ".", "..", "a/b", "../x", "a\x00b", string(make([]byte, 300))} {
		if _, err := e.Export(t.Context(), id, backendtest.NewMemVolume(512)); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Export(%q) = %v, want fs.ErrInvalid", id, err)
		}
	}
	if _, err := e.Export(t.Context(), "odd", backendtest.NewMemVolume(513)); err == nil {
		t.Error("a volume of 513 bytes was exported")
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Export(t.Context(), "late", backendtest.NewMemVolume(512)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Export after Close = %v, want fs.ErrClosed", err)
	}
}

func TestCloseWhileBusy(t *testing.T) {
	need.FUSE(t)
	e := newExporter(t)
	busy := export(t, e, "busy", backendtest.NewMemVolume(4096))
	idle := export(t, e, "idle", backendtest.NewMemVolume(4096))
	f := open(t, busy, os.O_RDONLY)
	if err := e.Close(); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("Close = %v, want ErrBusy", err)
	}
	<-idle.Done()
	if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("read after a refused Close: %v", err)
	}
}

// TestAbort frees a reader from a volume that hangs.
func TestAbort(t *testing.T) {
	need.FUSE(t)
	for name, abort := range map[string]func(d *fuse.Device) error{
		"Abort":        (*fuse.Device).Abort,
		"from outside": func(d *fuse.Device) error { return ignoreBusy(unix.Unmount(filepath.Dir(d.Path()), unix.MNT_FORCE)) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newExporter(t)
			v := backendtest.NewFaultVolume(backendtest.NewMemVolume(1 << 20))
			d := export(t, e, "hung", v)
			f := open(t, d, os.O_RDONLY)
			entered, _ := v.Stall(backendtest.Read, 0)
			read := make(chan error)
			go func() {
				_, err := f.ReadAt(make([]byte, 4096), 0)
				read <- err
			}()
			<-entered
			if err := abort(d); err != nil {
				t.Fatal(err)
			}
			if <-read == nil {
				t.Error("the hanging read succeeded")
			}
			<-d.Done()
			if d.Err() == nil {
				t.Error("no Err after an abort")
			}
			if _, err := e.Export(t.Context(), "hung", v); !errors.Is(err, fs.ErrExist) {
				t.Errorf("Export of an id not yet removed = %v, want fs.ErrExist", err)
			}
			removeAborted(t, d)
			if err := d.Abort(); err != nil {
				t.Errorf("Abort after Remove: %v", err)
			}
			removeDevice(t, export(t, e, "hung", backendtest.NewMemVolume(512)))
		})
	}
}

func ignoreBusy(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// removeAborted removes a dead device whose file is still open.
func removeAborted(t *testing.T, d *fuse.Device) {
	t.Helper()
	for {
		err := d.Remove(t.Context())
		if err == nil {
			return
		}
		if !errors.Is(err, backend.ErrBusy) {
			t.Fatal(err)
		}
	}
}

func TestUnmountedByHand(t *testing.T) {
	need.FUSE(t)
	v := backendtest.NewMemVolume(4096)
	d := export(t, newExporter(t), "byhand", v)
	if err := unix.Unmount(filepath.Dir(d.Path()), 0); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	if d.Err() == nil {
		t.Error("no Err after an unmount by hand")
	}
	removeDevice(t, d)
	if v.Closes() != 1 {
		t.Errorf("volume closed %d times, want once", v.Closes())
	}
}

func TestNewKeepsForeignFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"left/over", "full/file"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "full/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fuse.New(fuse.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "full/file")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "left")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory is left: %v", err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode of the directory = %v, %v, want 0700", st, err)
	}
}

// TestNewRefusesLiveMounts asks New to leave another process's devices alone.
func TestNewRefusesLiveMounts(t *testing.T) {
	need.FUSE(t)
	dir := t.TempDir()
	e, err := fuse.New(fuse.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	d := export(t, e, "live", backendtest.NewMemVolume(4096))
	if _, err := fuse.New(fuse.Options{Dir: dir}); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("New on a directory in use = %v, want ErrBusy", err)
	}
	removeDevice(t, d)
}

// servedDir tells a child process of TestKilledServer what to do.
const servedDir = "OVERLAYBD_TEST_SERVE_FUSE"

// TestKilledServer kills a process that serves a device: its users must get
// errors, and the next process must find a clean slate.
func TestKilledServer(t *testing.T) {
	need.FUSE(t)
	if dir := os.Getenv(servedDir); dir != "" {
		serveForParent(t, dir)
		return
	}
	dir := t.TempDir()
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKilledServer$")
	child.Env = append(os.Environ(), servedDir+"="+dir)
	child.Stderr = os.Stderr
	if _, err := child.StdinPipe(); err != nil { // ends with this process, and the child with it
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "serving\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	f, err := os.Open(filepath.Join(dir, "victim", "block"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	held := make(chan error)
	go func() {
		_, err := f.ReadAt(make([]byte, 4096), hangsAt)
		held <- err
	}()
	kill()
	_ = child.Wait() // killed, as it should be
	if <-held == nil {
		t.Error("a read that the killed process held succeeded")
	}
	if _, err := f.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Error("read from a killed process succeeded")
	}
	e, err := fuse.New(fuse.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left of the killed process: %v, %v", left, err)
	}
	removeDevice(t, export(t, e, "victim", backendtest.NewMemVolume(4096)))
}

// hangsAt is where a read of the child's device never ends.
const hangsAt = 8192

func serveForParent(t *testing.T, dir string) {
	e, err := fuse.New(fuse.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	v := backendtest.NewFaultVolume(backendtest.NewMemVolume(1 << 20))
	v.Stall(backendtest.Read, hangsAt)
	export(t, e, "victim", v)
	_, _ = os.Stdout.WriteString("serving\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
}
