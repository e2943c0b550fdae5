// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/referrer"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// createAttached commits the layer of a block image that is attached to the
// ordinary one whose layer base is for, and fails with errdefs.ErrAlreadyExists
// then. Whatever is in the way of that, the layer is to be unpacked, and why is
// noted.
func (s *Snapshotter) createAttached(ctx context.Context, base snapshots.Info) error {
	if s.opts.Attached == nil || isBlockLayer(base.Labels) || isTurbo(base) ||
		base.Labels[LabelDownload] == valueDownload || imageRef(base.Labels) == "" {
		return nil
	}
	below, err := s.stack(ctx, base.Parent)
	if err == nil {
		err = s.pullAttached(ctx, base, below)
	}
	if errdefs.IsAlreadyExists(err) || ctx.Err() != nil {
		return err
	}
	s.pulledWhole(base, len(below) == 0, err)
	return nil
}

// stack returns the stack of the snapshot name.
func (s *Snapshotter) stack(ctx context.Context, name string) (st stack, err error) {
	err = s.view(ctx, func(ctx context.Context) error {
		st, err = stackOf(ctx, name)
		return err
	})
	return st, err
}

// pullAttached is createAttached but for what becomes of errors.
func (s *Snapshotter) pullAttached(ctx context.Context, base snapshots.Info, below stack) error {
	manifest := digest.Digest(base.Labels[LabelManifestDigest])
	switch {
	case manifest == "":
		return errors.New("the client does not say which manifest it pulls: use rpull, or CRI with snapshot annotations enabled")
	case len(below) > 0 && !s.isBlock(below[0]):
		return errors.New("layers of it are here, unpacked")
	}
	img, err := s.opts.Attached.Find(ctx, imageRef(base.Labels), manifest)
	if err != nil {
		return err
	}
	layer, err := layerOf(img, base.Labels[LabelLayerDigest], below)
	if err != nil {
		return err
	}
	base.Labels = attachedLabels(base.Labels, layer)
	var l spec.Lower
	if isTurbo(base) {
		l, err = parseTurbo(base.Labels, s.opts.PlainHTTP)
	} else {
		l, err = parseLayer(base.Labels, s.opts.PlainHTTP)
	}
	if err != nil {
		return err
	}
	err = s.createRemote(ctx, base, l, layer.Files)
	if errdefs.IsAlreadyExists(err) {
		s.readLazily(base, img, len(below) == 0)
	}
	return err
}

// layerOf returns the layer of img that stands for the ordinary one on below,
// if the snapshots there are the layers that it was made on.
func layerOf(img *referrer.Image, source string, below stack) (referrer.Layer, error) {
	i := len(below)
	if i >= len(img.Layers) || img.Layers[i].Source.String() != source {
		return referrer.Layer{}, fmt.Errorf("%s refers to it, but has no layer %d for %s", img.Manifest, i, source)
	}
	for k, n := range below {
		if n.info.Labels[LabelBlobDigest] != img.Layers[i-1-k].Digest.String() {
			return referrer.Layer{}, fmt.Errorf("%s refers to it, but layers of it are here as block layers of another kind", img.Manifest)
		}
	}
	return img.Layers[i], nil
}

// attachedLabels returns the labels that layer l has where a client pulls the
// block image itself.
func attachedLabels(labels map[string]string, l referrer.Layer) map[string]string {
	labels = maps.Clone(labels)
	labels[LabelBlobDigest], labels[LabelBlobSize] = l.Digest.String(), strconv.FormatInt(l.Size, 10)
	delete(labels, LabelConvert)
	if l.Files != "" {
		labels[LabelTargetDigest], labels[LabelTargetMediaType] = l.Source.String(), l.SourceType
	}
	return labels
}

// linkFiles makes the files in the directory from appear in to as well. It
// does nothing if from is empty.
func linkFiles(from, to string) error {
	if from == "" {
		return nil
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Link(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return syncDir(to) // nothing brings them back after a power cut
}

// readLazily notes that the image of base is.
func (s *Snapshotter) readLazily(base snapshots.Info, img *referrer.Image, first bool) {
	ref := imageRef(base.Labels)
	if first {
		s.log.Info("image read on demand, by what refers to it", slog.String("image", ref), slog.String("referrer", img.Manifest.String()))
	}
	if err := s.notLazy.Drop(ref); err != nil {
		s.log.Warn("journal of images not written", slog.Any("err", err))
	}
}

// pulledWhole notes that the image of base is, and why. Of its layers, first is
// at the bottom.
func (s *Snapshotter) pulledWhole(base snapshots.Info, first bool, why error) {
	v := referrer.Verdict{
		Image: imageRef(base.Labels), Manifest: digest.Digest(base.Labels[LabelManifestDigest]),
		Reason: strings.ReplaceAll(why.Error(), "\n", "; "), Time: time.Now().UTC().Truncate(time.Second),
	}
	news, err := s.notLazy.Add(v, first)
	if err != nil {
		s.log.Warn("journal of images not written", slog.Any("err", err))
	}
	level := slog.LevelWarn
	if errors.Is(why, referrer.ErrNone) { // as most images are
		level = slog.LevelInfo
	}
	if news {
		s.log.Log(s.life, level, "image pulled as it is", slog.String("image", v.Image), slog.String("manifest", v.Manifest.String()), slog.Any("err", why))
	}
}
