// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"log/slog"
	"time"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
)

// settleInterval is how often is looked for mounted images that have come to
// the node since.
const settleInterval = time.Minute

// settleAll tells file systems that their devices are near, for containers that
// run for long: others learn it when they start.
func (s *Snapshotter) settleAll() {
	tick := time.NewTicker(settleInterval)
	defer tick.Stop()
	settled := make(map[string]mark)
	for {
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
		attached, err := s.attachments(s.life)
		if err != nil {
			s.log.Debug("block daemon not asked what is near", slog.Any("err", err))
			continue
		}
		settled = s.settleOthers(attached, settled)
	}
}

// settleOthers tells the file systems of attached, but those that settled says
// were told, and returns all that were.
func (s *Snapshotter) settleOthers(attached map[string]blockapi.Attachment, settled map[string]mark) map[string]mark {
	now := make(map[string]mark)
	for id, a := range attached {
		if !a.Near {
			continue
		}
		now[id] = s.readMark(id)
		if now[id] == settled[id] {
			continue
		}
		err := s.locked(s.life, id, func(context.Context) error {
			s.settle(id, deviceOf(a))
			return nil
		})
		if err != nil {
			delete(now, id) // it is busy: next time
		}
	}
	return now
}

// settle tells the file system of device id, whose lock is held, if dev is near.
func (s *Snapshotter) settle(id string, dev blockmount.Device) {
	if !dev.Near || !dev.File {
		return
	}
	if err := blockmount.Settle(s.at.mountpoint(id)); err != nil {
		s.log.Warn("image is on the node, but not read that way", slog.String("id", id), slog.Any("err", err))
	}
}
