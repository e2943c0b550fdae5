// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"golang.org/x/sys/unix"
)

// Mounts returns how to mount the active or view snapshot key. What is missing
// beneath, after a crash or a reboot, is attached and mounted again.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := s.mounts(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	return mounts, nil
}

func (s *Snapshotter) mounts(ctx context.Context, key string) ([]mount.Mount, error) {
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
		if err := s.likeRoot(st[0], s.lowerDirs(st, device)[0]); err != nil {
			return nil, err
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

// likeRoot gives the directory of container n the mode and times, and unless it
// is mapped the owner, of the root directory that it will lie on: in an overlay
// mount the uppermost one is what shows. From the first mount on, the container
// may have changed them: they stay.
func (s *Snapshotter) likeRoot(n node, lower string) error {
	if n.info.Kind == snapshots.KindView || s.wasMounted(n.id) {
		return nil
	}
	dir := s.at.fs(n.id)
	var root, own unix.Stat_t
	if err := unix.Lstat(lower, &root); err != nil {
		return fmt.Errorf("root directory %s: %w", lower, err)
	}
	if err := unix.Lstat(dir, &own); err != nil {
		return err
	}
	if own.Uid == 0 && own.Gid == 0 {
		if err := os.Lchown(dir, int(root.Uid), int(root.Gid)); err != nil {
			return err
		}
	}
	if err := unix.Chmod(dir, root.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{root.Atim, root.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// wasMounted reports whether the overlay of snapshot id was mounted once: the
// kernel makes a directory in the work directory then, and leaves it there.
func (s *Snapshotter) wasMounted(id string) bool {
	_, err := os.Lstat(filepath.Join(s.at.work(id), "work"))
	return err == nil
}
