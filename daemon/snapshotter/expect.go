// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"log/slog"
	"time"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// expectTimeout bounds telling the block daemon of a layer. It answers at once
// if it is there.
const expectTimeout = 5 * time.Second

// An announcement is of a layer, and of the spec that ends with it.
type announcement struct {
	spec.Lower

	spec string // path; empty if there is none
}

// expect has the block daemon told that a layer has come, for a container that
// will probably start soon; of one without a digest, only its repository. Where
// it does not keep up, it will hear of the layer when that is attached.
func (s *Snapshotter) expect(l spec.Lower, spec string) {
	select {
	case s.expected <- announcement{l, spec}:
	default:
	}
}

// announce tells the block daemon of layers until s is closed.
func (s *Snapshotter) announce() {
	for {
		select {
		case l := <-s.expected:
			if err := s.announceOne(l); err != nil {
				s.log.Debug("layer not announced", slog.String("digest", l.Digest.String()), slog.Any("err", err))
			}
		case <-s.life.Done():
			return
		}
	}
}

func (s *Snapshotter) announceOne(l announcement) error {
	ctx, cancel := context.WithTimeout(s.life, expectTimeout)
	defer cancel()
	if l.Digest == "" {
		return s.opts.Block.Expect(ctx, l.RepoBlobURL)
	}
	return s.opts.Block.Expect(ctx, l.RepoBlobURL, blockapi.Blob{
		Digest: l.Digest, Size: l.Size, Target: l.TargetDigest, SpecPath: l.spec,
	})
}
