// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

const (
	// teardownTimeout bounds taking down one device.
	teardownTimeout = 30 * time.Second

	// A device may stay open for a moment after it was unmounted, by whoever
	// heard of its loop device going.
	busyPatience = 2 * time.Second
	busyInterval = 20 * time.Millisecond
)

// mountDevice makes sure that the device that st describes is mounted at its
// mount point.
func (s *Snapshotter) mountDevice(ctx context.Context, st stack, writable bool) error {
	return s.withDevice(ctx, st[0].id, func(ctx context.Context) error {
		dev, err := s.attach(ctx, st)
		if err != nil {
			return err
		}
		if err := s.mountAttached(ctx, st, dev, writable); err != nil {
			return errors.Join(err, s.detach(ctx, st[0].id))
		}
		return nil
	})
}

// deviceNode makes sure that the device that st describes exists as a block
// special file, and returns that and the type of the file system on it.
func (s *Snapshotter) deviceNode(ctx context.Context, st stack) (node, fsType string, err error) {
	err = s.withDevice(ctx, st[0].id, func(ctx context.Context) error {
		dev, err := s.attach(ctx, st)
		if err != nil {
			return err
		}
		err = s.writeMark(st[0].id, dev)
		if err == nil {
			err = s.format(ctx, st, dev)
		}
		if node = dev.Path; err == nil && dev.File {
			node, err = blockmount.AttachLoop(dev.Path)
		}
		if err == nil {
			fsType, err = blockmount.Detect(node)
		}
		if err != nil {
			return errors.Join(err, s.detach(ctx, st[0].id))
		}
		return nil
	})
	return node, fsType, err
}

// withDevice runs fn under the lock of device id. The caller waits for it until
// ctx is done; fn goes on without the caller, since others may wait for the
// same device and a mount cannot be called off anyway. If fn succeeds late, the
// next attempt finds its work done.
func (s *Snapshotter) withDevice(ctx context.Context, id string, fn func(context.Context) error) error {
	unlock, err := s.devices.lock(ctx, id)
	if err != nil {
		return fmt.Errorf("device %s is still being attached or removed: %w", id, err)
	}
	long, cancel := s.outlive(ctx, s.opts.AttachTimeout)
	done := make(chan error, 1)
	s.work.Go(func() {
		defer cancel()
		defer unlock()
		done <- fn(long)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("device %s is still being attached: %w", id, ctx.Err())
	}
}

// outlive returns a context that ends with the snapshotter or after timeout,
// but not with ctx.
func (s *Snapshotter) outlive(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// attach asks for the device that st describes. One that has failed is replaced.
func (s *Snapshotter) attach(ctx context.Context, st stack) (blockmount.Device, error) {
	id := st[0].id
	if err := s.restoreSpec(st); err != nil {
		return blockmount.Device{}, err
	}
	a, err := s.opts.Block.Attach(ctx, id, s.at.spec(id))
	if err == nil && a.State == blockapi.Failed {
		s.log.Warn("device failed, replacing it", slog.String("id", id), slog.String("err", a.Error))
		if err = errors.Join(blockmount.Abandon(s.at.mountpoint(id)), s.opts.Block.Detach(ctx, id)); err == nil {
			a, err = s.opts.Block.Attach(ctx, id, s.at.spec(id))
		}
	}
	return deviceOf(a), err
}

func deviceOf(a blockapi.Attachment) blockmount.Device {
	return blockmount.Device{Path: a.Path, File: a.File, Near: a.Near}
}

// restoreSpec writes the spec of st again if a power cut took it.
func (s *Snapshotter) restoreSpec(st stack) error {
	path := s.at.spec(st[0].id)
	if _, err := spec.Load(path); err == nil {
		return nil
	}
	v, err := s.volume(st)
	if err != nil {
		return err
	}
	s.log.Warn("lost spec written again", slog.String("path", path))
	return s.saveSpec(st[0].id, v)
}

func (s *Snapshotter) mountAttached(ctx context.Context, st stack, dev blockmount.Device, writable bool) error {
	id := st[0].id
	target := s.at.mountpoint(id)
	mounted, err := blockmount.Mounted(target)
	if err != nil {
		return err
	}
	if mounted && s.readMark(id) == markOf(dev) {
		s.settle(id, dev)
		return nil
	}
	// What is mounted there is on a device that is gone. Until the mark is
	// written it tells so, whenever we crash.
	if err := blockmount.Abandon(target); err != nil {
		return err
	}
	if err := s.writeMark(id, dev); err != nil {
		return err
	}
	if err := s.format(ctx, st, dev); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	hint, err := s.fsOf(st)
	if err != nil {
		return err
	}
	return blockmount.Mount(dev, target, hint, writable)
}

func (s *Snapshotter) fsOf(st stack) (blockmount.FS, error) {
	return parseFS(st[0].info.Labels, s.opts.DefaultFS)
}

// format makes the file system of a device that never had one.
func (s *Snapshotter) format(ctx context.Context, st stack, dev blockmount.Device) error {
	note := s.at.unformatted(st[0].id)
	if _, err := os.Lstat(note); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	fs, err := s.fsOf(st)
	if err != nil {
		return err
	}
	if err := blockmount.Make(ctx, dev, fs); err != nil {
		return err
	}
	if err := os.Remove(note); err != nil {
		return err
	}
	return syncDir(s.at.block(st[0].id)) // or a power cut may have it formatted again
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A mark names an attached device: by its path, as the reference does, and by
// what tells it from a later device of the same path.
type mark struct {
	path     string
	identity string
}

func markOf(dev blockmount.Device) mark {
	m := mark{path: dev.Path}
	var st unix.Stat_t
	if err := unix.Stat(dev.Path, &st); err != nil {
		return m // equal to no mark that was written
	}
	// While a disk, or a file on FUSE, is mounted, no other gets its number.
	m.identity = fmt.Sprintf("node %d", st.Rdev)
	if dev.File {
		m.identity = fmt.Sprintf("file %d:%d", st.Dev, st.Ino)
	}
	return m
}

func (s *Snapshotter) writeMark(id string, dev blockmount.Device) error {
	m := markOf(dev)
	return os.WriteFile(s.at.mark(id), []byte(m.path+"\n"+m.identity+"\n"), 0o600)
}

// isFile reports whether the device is a regular file standing in for one.
func (m mark) isFile() bool { return strings.HasPrefix(m.identity, "file ") }

// readMark returns the mark of device id; without one the zero mark.
func (s *Snapshotter) readMark(id string) mark {
	text, _ := os.ReadFile(s.at.mark(id))
	path, rest, _ := strings.Cut(string(text), "\n")
	identity, _, _ := strings.Cut(rest, "\n")
	return mark{path: path, identity: identity}
}

// release unmounts and detaches device id, whose lock is held. It may be
// repeated; a device in use makes it fail.
func (s *Snapshotter) release(ctx context.Context, id string) error {
	target := s.at.mountpoint(id)
	mounted, err := blockmount.Mounted(target)
	if err != nil {
		return err
	}
	m := s.readMark(id)
	if !mounted && m == (mark{}) {
		return nil // never attached
	}
	if err := blockmount.Unmount(target); err != nil {
		return err
	}
	if m.isFile() { // or the mark may name what is another's disk by now
		if err := blockmount.DetachLoop(m.path); err != nil {
			return err
		}
	}
	return s.detach(ctx, id)
}

// detach detaches device id, which is not mounted.
func (s *Snapshotter) detach(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
	defer cancel()
	if err := s.detachIdle(ctx, id); err != nil {
		return err
	}
	if err := os.Remove(s.at.mark(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// detachIdle detaches device id as soon as nobody has it open, for a while.
func (s *Snapshotter) detachIdle(ctx context.Context, id string) error {
	tick := time.NewTicker(busyInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(busyPatience); ; {
		err := s.opts.Block.Detach(ctx, id)
		if err == nil || !errdefs.IsFailedPrecondition(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}
