// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
)

// ReleaseIdle takes down the devices that nothing has mounted, for a daemon
// that is about to stop: containers that run keep theirs, whoever comes later
// has its device attached again. No other call may be under way.
func (s *Snapshotter) ReleaseIdle(ctx context.Context) error {
	attached, err := s.attachments(ctx)
	if err != nil {
		return err
	}
	used, err := s.devicesInUse(ctx)
	if err != nil {
		return err
	}
	var all sync.WaitGroup // at once, as a busy device takes its time to say so
	for id, a := range attached {
		if a.State == blockapi.Suspended {
			continue // to unmount it might take for ever
		}
		all.Go(func() {
			err := s.locked(ctx, id, func(ctx context.Context) error { return s.releaseUnlessBusy(ctx, id, used[id]) })
			if err != nil {
				s.log.Warn("idle device not removed", slog.String("id", id), slog.Any("err", err))
			}
		})
	}
	all.Wait()
	return nil
}

// givenOut reports whether the node of device id, which is made of st, is
// somebody's, who has it open only now and then.
func (s *Snapshotter) givenOut(id string, st stack) bool {
	if st == nil || !s.isWritable(id) {
		return false
	}
	mode, err := parseMode(st[0].info.Labels, s.opts.RWMode)
	return err == nil && mode == ModeDev
}

// releaseUnlessBusy takes down device id, whose lock is held and which is made
// of st, unless it is in use. Only trying tells: a container's overlay holds
// the image by a mount that no table shows.
func (s *Snapshotter) releaseUnlessBusy(ctx context.Context, id string, st stack) error {
	mounted, err := blockmount.Mounted(s.at.mountpoint(id))
	if err != nil {
		return err
	}
	if !mounted && s.givenOut(id, st) {
		return nil
	}
	err = s.release(ctx, id)
	busy := errdefs.IsFailedPrecondition(err) || errors.Is(err, unix.EBUSY)
	if !busy {
		return err
	}
	if st == nil {
		return nil // nobody will ask for it again
	}
	dev, err := s.attach(ctx, st)
	if err != nil {
		return err
	}
	return s.mountAttached(ctx, st, dev, s.isWritable(id))
}
