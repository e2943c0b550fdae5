// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"golang.org/x/sys/unix"
)

// Mounts returns how to mount the active or view snapshot key. What is missing
// beneath, after a crash or a reboot, is attached and mounted again.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := s.mounts(ctx, key, false)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	return mounts, nil
}

func (s *Snapshotter) mounts(ctx context.Context, key string, fresh bool) ([]mount.Mount, error) {
	var st stack
	err := s.view(ctx, func(ctx context.Context) (err error) {
		if _, err = storage.GetSnapshot(ctx, key); err == nil { // fails for a committed one
			st, err = stackOf(ctx, key)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	device, err := s.deviceOf(st)
	switch {
	case err != nil:
		return nil, err
	case len(device) == len(st):
		return s.ownDevice(ctx, st)
	case len(device) > 0:
		if err := s.mountDevice(ctx, device, false); err != nil {
			return nil, err
		}
		if fresh && len(device) == len(st)-1 {
			if err := s.likeRoot(st[0].id, device[0].id); err != nil {
				return nil, err
			}
		}
	}
	return s.overlay(st, device), nil
}

// ownDevice returns the mount of a snapshot that writes to a device of its own.
func (s *Snapshotter) ownDevice(ctx context.Context, st stack) ([]mount.Mount, error) {
	mode, err := parseMode(st[0].info.Labels, s.opts.RWMode)
	if err != nil {
		return nil, err
	}
	if mode == ModeDev {
		node, fsType, err := s.deviceNode(ctx, st)
		if err != nil {
			return nil, err
		}
		return []mount.Mount{{Type: fsType, Source: node, Options: []string{"rw", "discard"}}}, nil
	}
	if err := s.mountDevice(ctx, st, true); err != nil {
		return nil, err
	}
	return bind(s.at.mountpoint(st[0].id), "rw"), nil
}

// overlay returns the mount of a snapshot that writes to its directory, over
// directories and, below them, the device.
func (s *Snapshotter) overlay(st, device stack) []mount.Mount {
	n := st[0]
	if isStaging(n.info) {
		return bind(s.at.fs(n.id), "rw")
	}
	lowers := s.lowerDirs(st, device)
	view := n.info.Kind == snapshots.KindView
	switch {
	case len(lowers) == 0 && view:
		return bind(s.at.fs(n.id), "ro", idMapOptions(n.info.Labels)...)
	case len(lowers) == 0:
		return bind(s.at.fs(n.id), "rw", idMapOptions(n.info.Labels)...)
	case len(lowers) == 1 && view:
		return bind(lowers[0], "ro", idMapOptions(n.info.Labels)...)
	}
	options := idMapOptions(n.info.Labels)
	if !view {
		options = append(options, "workdir="+s.at.work(n.id), "upperdir="+s.at.fs(n.id))
	}
	options = append(options, "lowerdir="+strings.Join(lowers, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.opts.OverlayOptions...)}}
}

// lowerDirs returns the directories below the first snapshot of st, topmost
// first, down to the mount point of the device.
func (s *Snapshotter) lowerDirs(st, device stack) []string {
	var dirs []string
	for _, n := range st[1 : len(st)-len(device)] {
		dirs = append(dirs, s.at.fs(n.id))
	}
	if len(device) > 0 {
		dirs = append(dirs, s.at.mountpoint(device[0].id))
	}
	return dirs
}

// idMapOptions asks for an id-mapped mount where the labels name one.
func idMapOptions(labels map[string]string) []string {
	var options []string
	if m, ok := labels[snapshots.LabelSnapshotUIDMapping]; ok {
		options = append(options, "uidmap="+m)
	}
	if m, ok := labels[snapshots.LabelSnapshotGIDMapping]; ok {
		options = append(options, "gidmap="+m)
	}
	return options
}

func bind(dir, access string, options ...string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: append(options, access, "rbind")}}
}

// likeRoot gives the directory of a new snapshot the mode, and unless it is
// mapped the owner, of the root directory of the image: in an overlay mount the
// uppermost one is what shows.
func (s *Snapshotter) likeRoot(id, image string) error {
	var root, own unix.Stat_t
	if err := unix.Lstat(s.at.mountpoint(image), &root); err != nil {
		return fmt.Errorf("root directory of image %s: %w", image, err)
	}
	if err := unix.Lstat(s.at.fs(id), &own); err != nil {
		return err
	}
	if own.Uid == 0 && own.Gid == 0 {
		if err := os.Lchown(s.at.fs(id), int(root.Uid), int(root.Gid)); err != nil {
			return err
		}
	}
	return unix.Chmod(s.at.fs(id), root.Mode&0o7777)
}
