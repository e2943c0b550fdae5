// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A nodeBlock is a block daemon whose devices are block special files that
// outlive it: loop devices on the files of a fake one.
type nodeBlock struct {
	*fakeBlock
	suspended atomic.Bool // as after a start, until the layers can be opened
}

func newNode(t testing.TB) *nodeBlock {
	t.Helper()
	need.Loop(t)
	return &nodeBlock{fakeBlock: newFake(t)}
}

// node returns a as it is seen.
func (n *nodeBlock) node(a blockapi.Attachment) (blockapi.Attachment, error) {
	if n.suspended.Load() {
		a.Path, a.File, a.State, a.Error = "", false, blockapi.Suspended, "registry is away"
		return a, nil
	}
	node, err := blockmount.AttachLoop(a.Path)
	a.Path, a.File = node, false
	return a, err
}

func (n *nodeBlock) Attach(ctx context.Context, id, specPath string) (blockapi.Attachment, error) {
	if n.suspended.Load() {
		return blockapi.Attachment{}, errdefs.ErrUnavailable
	}
	a, err := n.fakeBlock.Attach(ctx, id, specPath)
	if err != nil {
		return a, err
	}
	return n.node(a)
}

func (n *nodeBlock) Attachments(ctx context.Context) ([]blockapi.Attachment, error) {
	all, err := n.fakeBlock.Attachments(ctx)
	for i := range all {
		var e error
		all[i], e = n.node(all[i])
		err = errors.Join(err, e)
	}
	return all, err
}

func (n *nodeBlock) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	a, ok := n.devices[id]
	n.mu.Unlock()
	if !ok {
		return n.fakeBlock.Detach(ctx, id)
	}
	node, err := blockmount.AttachLoop(a.Path)
	if err != nil {
		return err
	}
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", node, err, errdefs.ErrFailedPrecondition)
	}
	if err := errors.Join(unix.Close(fd), blockmount.DetachLoop(a.Path)); err != nil {
		return err
	}
	return n.fakeBlock.Detach(ctx, id)
}

// TestSuspendedStaysMounted: a device of which the block daemon knows, but
// which it cannot serve yet, is not taken from those who use it.
func TestSuspendedStaysMounted(t *testing.T) {
	n := newNode(t)
	r := newRig(t, n)
	ref := r.image(n.fakeBlock, "app")
	dir := r.run(r.prepare("c", ref))
	own := r.run(r.prepare("own", ref, snapshotter.LabelWritable, "dir"))
	r.stop()
	n.suspended.Store(true)
	r.start()
	r.wantMounted("1", "3")
	if _, err := r.Prepare(t.Context(), "next", ref); !errdefs.IsUnavailable(err) {
		t.Errorf("prepare: %v, want unavailable", err)
	}
	n.suspended.Store(false)
	r.wantFile(r.mounts("c"), "name", "app")
	r.wantRead(filepath.Join(dir, "name"), "app")
	r.wantRead(filepath.Join(own, "name"), "app")
	r.wantMounted("1", "3")
	r.unmount(dir)
	r.unmount(own)
}

// TestNodeOfAnother: after a reboot a node that a mark names is another's
// disk. It is neither mounted nor formatted nor detached.
func TestNodeOfAnother(t *testing.T) {
	n := newNode(t)
	r := newRig(t, n)
	ref := r.image(n.fakeBlock, "app")
	r.writeFile(r.prepare("own", ref, snapshotter.LabelWritable, "dir"), "new", "1")
	r.prepare("node", ref, snapshotter.LabelWritable, "dev")
	r.wantFile(r.prepare("c", ref), "name", "app")

	var other string // another's disk, with the node of ours
	r.reboot(func() {
		list, err := n.Attachments(t.Context())
		if err != nil || len(list) != 3 {
			t.Fatalf("got %+v, %v", list, err)
		}
		for _, a := range n.devices {
			if err := blockmount.DetachLoop(a.Path); err != nil {
				t.Fatal(err)
			}
		}
		n.lose()
		other = takeNode(t, list, n.layers[n.addLayer(t, "another's")])
	})
	r.wantFile(r.mounts("own"), "new", "1")
	r.wantFile(r.mounts("c"), "name", "app")
	r.wantFile(r.mounts("node"), "name", "app")
	for _, key := range []string{"own", "c", "node"} {
		r.remove(key)
	}
	fs, err := blockmount.Detect(other)
	if err != nil || fs != "ext4" {
		t.Errorf("another's disk holds %q, %v", fs, err)
	}
}

// takeNode puts file on the loop device that one of the attachments was, and
// returns that. Other programs may have all of them for a moment.
func takeNode(t *testing.T, former []blockapi.Attachment, file string) (node string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	deadline, tick := time.After(time.Minute), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		for _, a := range former {
			if err = configureLoop(a.Path, f); err == nil {
				t.Cleanup(func() { _ = blockmount.DetachLoop(file) })
				return a.Path
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("none of %+v can be had: %v", former, err)
		}
	}
}

func configureLoop(node string, file *os.File) error {
	loop, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	cfg := unix.LoopConfig{Fd: uint32(file.Fd())}
	copy(cfg.Info.File_name[:], file.Name())
	return unix.IoctlLoopConfigure(int(loop.Fd()), &cfg)
}
