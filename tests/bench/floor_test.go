// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A floor is what a workload cannot do without: the blocks of 4 KiB that it
// reads until it is ready if nothing is read ahead, those that mount the file
// system included.
type floor struct {
	Blocks int
	Bytes  int64 // of these blocks, each compressed by itself with zlib

	Touched []int64 // the blocks
}

// floorBlock is the unit of a floor in bytes, that of the file system.
const floorBlock = 4096

// floorOf returns the floor of a workload, which an earlier run may have found.
func floorOf(tb testing.TB, registry *e2e.Registry, w workload) (f floor) {
	tb.Helper()
	dir := need.Cached(tb, "floor-"+w.name+"-"+conversion(w.image(tb)), func(dir string) {
		text, err := json.Marshal(findFloor(tb, registry, w.command))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "floor.json"), text, 0o644)
		}
		if err != nil {
			tb.Fatal(err)
		}
	})
	text, err := os.ReadFile(filepath.Join(dir, "floor.json"))
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func findFloor(tb testing.TB, registry *e2e.Registry, command []string) (f floor) {
	tb.Helper()
	var m ocispec.Manifest
	fetchManifest(tb, registry, "overlaybd", ocispec.MediaTypeImageManifest, &m)
	volume := &spec.Volume{}
	for _, l := range m.Layers {
		volume.Lowers = append(volume.Lowers, spec.Lower{File: registry.Blob(l.Digest)})
	}
	disk, err := image.Open(tb.Context(), volume, fetcher.Schemes{"file": file.Opener{}})
	if err != nil {
		tb.Fatal(err)
	}
	noted := &noting{Volume: disk, blocks: make(map[int64]bool)}
	var touched []int64
	out := output{first: func() { touched = noted.sorted() }}
	root, lower := rootOf(tb, noted)
	readNothingAhead(tb, lower)
	out.chroot(tb, root, command)

	var sum counter
	block := make([]byte, floorBlock)
	for _, b := range touched {
		z, _ := zlib.NewWriterLevel(&sum, 6) // the level is one
		_, err := disk.ReadAt(tb.Context(), block, b*floorBlock)
		if _, werr := z.Write(block); errors.Join(err, werr, z.Close()) != nil {
			tb.Fatal(err, werr)
		}
	}
	return floor{len(touched), int64(sum), touched}
}

// A counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// noting is a volume that notes which of its blocks are read.
type noting struct {
	backend.Volume

	mu     sync.Mutex // guards blocks
	blocks map[int64]bool
}

func (n *noting) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n.mu.Lock()
	for b := off / floorBlock; b*floorBlock < off+int64(len(p)); b++ {
		n.blocks[b] = true
	}
	n.mu.Unlock()
	return n.Volume.ReadAt(ctx, p, off)
}

func (n *noting) sorted() []int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.blocks))
}

// rootOf returns the root directory of a container on the disk v, and where that
// is mounted.
func rootOf(tb testing.TB, v backend.Volume) (root, lower string) {
	tb.Helper()
	dir := tb.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	exporter, err := fuse.New(fuse.Options{Dir: in("devices")})
	if err != nil {
		tb.Fatal(err)
	}
	device, err := exporter.Export(tb.Context(), "floor", v)
	if err != nil {
		tb.Fatal(err)
	}
	atEnd(tb, func() error { return errors.Join(device.Remove(context.WithoutCancel(tb.Context())), exporter.Close()) })
	for _, name := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(in(name), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	if err := blockmount.Mount(blockmount.Device{Path: device.Path(), File: true}, in("lower"), blockmount.FS{}, false); err != nil {
		tb.Fatal(err)
	}
	atEnd(tb, func() error { return unix.Unmount(in("lower"), 0) })
	root, lower = in("root"), in("lower")
	mountAt(tb, "overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", in("lower"), in("upper"), in("work")))
	mountAt(tb, "proc", filepath.Join(root, "proc"), "proc", 0, "")
	mountAt(tb, "/dev", filepath.Join(root, "dev"), "", unix.MS_BIND, "")
	return root, lower
}

func mountAt(tb testing.TB, source, target, fs string, flags uintptr, data string) {
	tb.Helper()
	if err := unix.Mount(source, target, fs, flags, data); err != nil {
		tb.Fatal(err)
	}
	atEnd(tb, func() error { return unix.Unmount(target, 0) })
}

func atEnd(tb testing.TB, f func() error) {
	tb.Cleanup(func() {
		if err := f(); err != nil {
			tb.Error(err)
		}
	})
}

// readNothingAhead tells the kernel so for the file system at dir.
func readNothingAhead(tb testing.TB, dir string) {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		tb.Fatal(err)
	}
	knobs := []string{fmt.Sprintf("/sys/dev/block/%d:%d/bdi/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))}
	if _, err := os.Stat(knobs[0]); err != nil { // it is mounted from a file: one of these is its own
		knobs, _ = filepath.Glob("/sys/class/bdi/erofs-*/read_ahead_kb")
	}
	for _, knob := range knobs {
		if err := os.WriteFile(knob, []byte("0"), 0); err != nil {
			tb.Fatal(err)
		}
	}
}

// chroot runs a command, whose output begins with "ready", in a directory. It
// does so by way of a program that is not there: a process of Go's does not
// run while it starts another, and this one serves the directory.
func (o *output) chroot(tb testing.TB, root string, command []string) {
	tb.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(tb.Context(), need.Command(tb, "chroot"), append([]string{root}, command...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = o, &stderr
	if err := cmd.Run(); err != nil {
		tb.Fatalf("%v: %v\n%s", command, err, &stderr)
	}
	o.check(tb, command)
}
