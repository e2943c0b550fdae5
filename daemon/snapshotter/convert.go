// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/image/spec"
)

// An ordinary layer is converted on the node in two steps. The [Applier] puts
// its blob, as it came, beside the snapshot's directory; Commit has metadata
// made for that. What says that a layer was converted is that its files are
// there: the blob, and the metadata, which come last.

// A Converter makes block layers of ordinary ones.
type Converter interface {
	// Convert writes into the directory c.Dir the layer's metadata,
	// overlaybd.commit, and if the layer is compressed an index of it, gzip.meta
	// or zstd.meta. Content stays in the layer.
	Convert(ctx context.Context, c Conversion) error
}

// A Conversion is an ordinary layer to be converted.
type Conversion struct {
	Below  *spec.Volume  // what it lies on; nil for nothing
	Layer  string        // file with the layer, a tar that may be compressed
	DiffID digest.Digest // of the tar; "" if that is not known
	FSType string        // the file system to make if it lies on nothing
	Dir    string        // for the result, and for what is needed on the way
}

// isConverting reports whether a snapshot is for a layer that is converted when
// it is committed. Prepare leaves the label on no other.
func isConverting(info snapshots.Info) bool {
	return unpacks(info) && info.Labels[LabelConvert] != "" && !isTurbo(info) && !isBlockLayer(info.Labels)
}

// settleConversion takes the label that asks for a conversion off base, where
// that is not possible: its layer is unpacked then.
func (s *Snapshotter) settleConversion(base *snapshots.Info, below stack) error {
	if !isConverting(*base) {
		return nil
	}
	why := "no converter"
	if s.opts.Converter != nil {
		err := s.checkParent(below)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errPlain) {
			return err
		}
		why = "the layer below was unpacked"
	}
	s.log.Info("layer not converted", slog.String("layer", base.Labels[snapshots.LabelSnapshotRef]), slog.String("why", why))
	labels := make(map[string]string)
	for key, value := range base.Labels {
		if key != LabelConvert {
			labels[key] = value
		}
	}
	base.Labels = labels
	return nil
}

// finishConversion makes a block layer of the one stored for the first snapshot
// of st, and writes its spec.
func (s *Snapshotter) finishConversion(ctx context.Context, st stack) error {
	id := st[0].id
	unlock, err := s.devices.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithCancel(ctx) // it takes as long as it takes
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	if !s.isConverted(id) {
		if err := s.convert(ctx, st); err != nil {
			return fmt.Errorf("convert layer: %w", err)
		}
	}
	v, err := s.compose(st[0], st[1:], s.convertedLayer(id))
	if err != nil {
		return onPlain(err)
	}
	return s.saveSpec(id, v)
}

// convert makes the metadata of the layer of st's first snapshot. Cut short, it
// leaves nothing, or what the next attempt clears away.
func (s *Snapshotter) convert(ctx context.Context, st stack) (err error) {
	id := st[0].id
	c, err := s.conversion(st)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		return err
	}
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.Dir)) }()
	if err := s.opts.Converter.Convert(ctx, c); err != nil {
		return err
	}
	// The index comes first: the metadata are what tells that all is there.
	for _, dst := range []string{s.at.gzipIndex(id), s.at.zstdIndex(id)} {
		if err := install(filepath.Join(c.Dir, filepath.Base(dst)), dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := install(filepath.Join(c.Dir, filepath.Base(s.at.commit(id))), s.at.commit(id)); err != nil {
		return err
	}
	return syncDir(s.at.fs(id))
}

// conversion returns what is to be done for st's first snapshot.
func (s *Snapshotter) conversion(st stack) (c Conversion, err error) {
	id := st[0].id
	if s.opts.Converter == nil {
		return c, fmt.Errorf("no converter: %w", errdefs.ErrFailedPrecondition)
	}
	ok, err := isRegular(s.at.layerTar(id))
	if err != nil {
		return c, err
	}
	if !ok {
		return c, fmt.Errorf("it was unpacked and not kept: containerd's configuration must put this snapshotter's differ first: %w", errdefs.ErrFailedPrecondition)
	}
	hint, err := s.fsOf(st)
	if err != nil {
		return c, err
	}
	c = Conversion{Layer: s.at.layerTar(id), FSType: hint.Type, Dir: s.at.temp(id)}
	if hint.Type != "erofs" {
		c.FSType = "ext4" // the others cannot be made so
	}
	if len(st) > 1 {
		if c.Below, err = s.volume(st[1:]); err != nil {
			return c, onPlain(err)
		}
		dropTrace(c.Below)
	}
	text, err := os.ReadFile(s.at.diffID(id))
	if errors.Is(err, fs.ErrNotExist) { // another differ's
		return c, nil
	}
	if err != nil {
		return c, err
	}
	c.DiffID, err = digest.Parse(strings.TrimSpace(string(text)))
	return c, err
}

// install makes the file src, synced, the file dst.
func install(src, dst string) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(src, dst)
}

// isConverted reports whether snapshot id is a layer that was converted.
func (s *Snapshotter) isConverted(id string) bool {
	ok, err := isRegular(s.at.layerTar(id))
	return err == nil && ok && isLayerFile(s.at.commit(id))
}

// convertedLayer returns the layer that snapshot id was converted to.
func (s *Snapshotter) convertedLayer(id string) spec.Lower {
	l := spec.Lower{File: s.at.commit(id), TargetFile: s.at.layerTar(id)}
	for _, path := range []string{s.at.gzipIndex(id), s.at.zstdIndex(id)} {
		if ok, err := isRegular(path); err == nil && ok {
			l.GzipIndex = path
		}
	}
	return l
}

// isRegular reports whether there is a regular file at path.
func isRegular(path string) (bool, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Mode().IsRegular(), err
}
