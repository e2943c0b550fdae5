// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
)

// parallelRemounts is how many devices are attached at once after a start: a
// reboot must not have all images of the node ask their registries together.
const parallelRemounts = 4

// listTimeout bounds asking the block daemon what it has, which is in its
// memory.
const listTimeout = 10 * time.Second

// reconcile makes directories, mounts and devices agree with the metadata,
// before anyone calls: whatever belongs to no snapshot goes, and what running
// containers need comes back, in the background.
func (s *Snapshotter) reconcile(ctx context.Context) error {
	attached, err := s.attachments(ctx)
	if err != nil {
		s.log.Warn("block daemon does not answer, what a crash left stays", slog.Any("err", err))
		return nil
	}
	names, err := s.orphans(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		s.discard(ctx, name)
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
		s.dropDead(id, attached[id])
	}
	for id, a := range attached {
		if a.State != blockapi.Suspended { // to unmount it might take for ever
			s.dropIdle(ctx, id, used[id] != nil)
		}
	}
	s.remount(used)
	return nil
}

// attachments returns our devices by snapshot id. Others may use the block
// daemon too.
func (s *Snapshotter) attachments(ctx context.Context) (map[string]blockapi.Attachment, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	all, err := s.opts.Block.Attachments(ctx)
	if err != nil {
		return nil, err
	}
	ours := make(map[string]blockapi.Attachment)
	for _, a := range all {
		if id, ok := s.at.idOf(a.SpecPath); ok && id == a.ID {
			ours[id] = a
		}
	}
	return ours, nil
}

// dropDead removes the mount of device id from sight if a, what the daemon has
// under that id, is not what it is mounted from. A suspended device will be.
func (s *Snapshotter) dropDead(id string, a blockapi.Attachment) {
	if a.State == blockapi.Suspended {
		return
	}
	if a.ID != "" && a.State != blockapi.Failed && s.readMark(id) == markOf(deviceOf(a)) {
		return
	}
	if err := blockmount.Abandon(s.at.mountpoint(id)); err != nil {
		s.log.Warn("dead mount not removed", slog.String("id", id), slog.Any("err", err))
	}
}

// dropIdle detaches device id if it serves nobody: its snapshot is gone, or it
// is neither needed nor mounted for the next that will.
func (s *Snapshotter) dropIdle(ctx context.Context, id string, used bool) {
	mounted, err := blockmount.Mounted(s.at.mountpoint(id))
	if used || err == nil && mounted && !s.opts.AutoRemoveDevice {
		return
	}
	err = errors.Join(err, s.locked(ctx, id, func(ctx context.Context) error {
		if err := s.release(ctx, id); err != nil {
			return err
		}
		return s.detach(ctx, id) // it may have been attached and no more
	}))
	if err != nil {
		s.log.Warn("idle device not removed", slog.String("id", id), slog.Any("err", err))
	}
}

// remount mounts the devices in use that are not mounted, in the background.
func (s *Snapshotter) remount(used map[string]stack) {
	s.work.Go(func() {
		var g errgroup.Group
		g.SetLimit(parallelRemounts)
		for id, st := range used {
			g.Go(func() error {
				if err := s.remountDevice(id, st); err != nil {
					s.log.Warn("device not mounted again, its next user will try", slog.String("id", id), slog.Any("err", err))
				}
				return nil
			})
		}
		_ = g.Wait() // all are logged
	})
}

func (s *Snapshotter) remountDevice(id string, st stack) error {
	if !s.isWritable(id) {
		return s.mountDevice(s.life, st, false)
	}
	_, err := s.ownDevice(s.life, st)
	return err
}
