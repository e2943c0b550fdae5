// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/image/spec"
)

// Remove removes a snapshot that has no children. Its device and directory go
// after the metadata; what of them cannot go is left to Cleanup.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	st, err := s.forget(ctx, key)
	if err == nil && !s.opts.AsyncRemove {
		s.takeDown(context.WithoutCancel(ctx), st) // nobody will call again
	}
	return err
}

// rollback removes the snapshot key, of which its creator's caller never
// heard. It does not wait for a device whose creator ran out of time.
func (s *Snapshotter) rollback(ctx context.Context, key string) error {
	st, err := s.forget(context.WithoutCancel(ctx), key)
	switch {
	case err != nil:
		return err
	case ctx.Err() == nil:
		s.takeDown(ctx, st)
	default:
		s.work.Go(func() { s.takeDown(s.life, st) })
	}
	return nil
}

// forget removes key from the metadata and returns the stack that it was.
func (s *Snapshotter) forget(ctx context.Context, key string) (st stack, err error) {
	err = s.update(ctx, func(ctx context.Context) (err error) {
		if st, err = stackOf(ctx, key); err != nil {
			return err
		}
		_, _, err = storage.Remove(ctx, key)
		return err
	}, nil)
	return st, err
}

// takeDown removes what the first snapshot of st, which is forgotten, leaves.
func (s *Snapshotter) takeDown(ctx context.Context, st stack) {
	s.discard(ctx, st[0].id)
	if !s.opts.AutoRemoveDevice || st[0].info.Kind == snapshots.KindCommitted {
		return
	}
	if image := s.imageBelow(st); image != "" {
		s.releaseUnused(ctx, image)
	}
}

// imageBelow returns the id of the block snapshot that the first of st lies on.
func (s *Snapshotter) imageBelow(st stack) string {
	for _, n := range st[1:] {
		if s.isBlock(n) {
			return n.id
		}
	}
	return ""
}

// Cleanup takes down what Remove left: directories, their devices and, with
// AutoRemoveDevice, devices of images that no container is on.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	names, err := s.orphans(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		s.discard(ctx, name)
	}
	return s.releaseIdle(ctx)
}

// orphans lists the directories that belong to no snapshot.
func (s *Snapshotter) orphans(ctx context.Context) (names []string, err error) {
	// In a write transaction, as snapshots get theirs in one.
	err = s.update(ctx, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil && !errdefs.IsNotFound(err) { // as it is before the first snapshot
			return err
		}
		entries, err := os.ReadDir(s.at.snapshots())
		for _, e := range entries {
			if _, ok := ids[e.Name()]; !ok {
				names = append(names, e.Name())
			}
		}
		return err
	}, nil)
	return names, err
}

// discard takes down the device of the directory name, which belongs to no
// snapshot, and removes the directory: last, so that it tells of what is left.
func (s *Snapshotter) discard(ctx context.Context, name string) {
	err := s.locked(ctx, name, func(ctx context.Context) error {
		if err := s.release(ctx, name); err != nil {
			return err
		}
		return os.RemoveAll(s.at.dir(name))
	})
	if err != nil {
		s.log.Warn("snapshot not fully removed", slog.String("id", name), slog.Any("err", err))
	}
}

// locked runs fn under the lock of device id, within teardownTimeout.
func (s *Snapshotter) locked(ctx context.Context, id string, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, teardownTimeout)
	defer cancel()
	unlock, err := s.devices.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return fn(ctx)
}

// releaseUnused takes down the device of image id unless a container is on it.
// One that comes after the question waits for the lock, and attaches anew.
func (s *Snapshotter) releaseUnused(ctx context.Context, id string) {
	err := s.locked(ctx, id, func(ctx context.Context) error {
		used, err := s.devicesInUse(ctx)
		if err != nil || used[id] != nil {
			return err
		}
		return s.release(ctx, id)
	})
	if err != nil {
		s.log.Warn("unused device not removed", slog.String("id", id), slog.Any("err", err))
	}
}

// releaseIdle takes down the devices of images without containers, if it is
// to.
func (s *Snapshotter) releaseIdle(ctx context.Context) error {
	if !s.opts.AutoRemoveDevice {
		return nil
	}
	used, err := s.devicesInUse(ctx)
	if err != nil {
		return err
	}
	marked, err := s.marked()
	if err != nil {
		return err
	}
	for _, id := range marked {
		if used[id] == nil {
			s.releaseUnused(ctx, id)
		}
	}
	return nil
}

// devicesInUse returns, by id, the devices that active and view snapshots are
// on.
func (s *Snapshotter) devicesInUse(ctx context.Context) (map[string]stack, error) {
	used := make(map[string]stack)
	err := s.view(ctx, func(ctx context.Context) error {
		return walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted {
				return nil
			}
			st, err := stackOf(ctx, info.Name)
			if err != nil {
				return err
			}
			device, err := s.deviceOf(st)
			if err == nil && len(device) > 0 {
				used[device[0].id] = device
			}
			return nil // one whose device cannot be told uses none
		})
	})
	return used, err
}

// isWritable reports whether snapshot id has a device of its own.
func (s *Snapshotter) isWritable(id string) bool {
	v, err := spec.Load(s.at.spec(id))
	return err == nil && v.Writable()
}

// marked lists the directories whose devices were attached at some time, by id.
func (s *Snapshotter) marked() ([]string, error) {
	entries, err := os.ReadDir(s.at.snapshots())
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if _, err := os.Lstat(s.at.mark(e.Name())); err == nil {
			ids = append(ids, e.Name())
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return ids, nil
}
