// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	continuity "github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/image/spec"
)

// Commit makes the active snapshot key the committed snapshot name. A device of
// its own is taken down and its writable layer sealed, and a block layer that
// was unpacked into the snapshot is recognised. Every step may be repeated, so
// that a Commit that was cut short is made again.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := s.commit(ctx, name, key, opts); err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	return nil
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, opts []snapshots.Opt) error {
	var base snapshots.Info
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return err
		}
	}
	st, err := s.committable(ctx, name, key, base.Parent)
	if err != nil {
		return err
	}
	id := st[0].id
	labels := keepLabels(base.Labels, st[0].info)
	if st[0].info.Kind == snapshots.KindActive {
		path, err := s.finishLayer(ctx, st)
		if err != nil {
			return err
		}
		if path != "" {
			labels = withCommitPath(labels, path)
		}
	}
	usage, err := continuity.DiskUsage(ctx, s.at.fs(id))
	if err != nil {
		return err
	}
	return s.update(ctx, func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, key, name, snapshots.Usage(usage),
			snapshots.WithLabels(labels), snapshots.WithParent(base.Parent))
		return err
	}, nil)
}

func withCommitPath(labels map[string]string, path string) map[string]string {
	if labels == nil {
		labels = make(map[string]string)
	}
	labels[LabelLocalCommitPath] = path
	delete(labels, LabelWritable) // it is no longer
	return labels
}

// committable returns the stack of key, with rebase under it if it has no
// parent yet, and an error if name is taken.
func (s *Snapshotter) committable(ctx context.Context, name, key, rebase string) (st stack, err error) {
	err = s.view(ctx, func(ctx context.Context) error {
		if _, _, _, err := storage.GetInfo(ctx, name); err == nil {
			return fmt.Errorf("snapshot %s: %w", name, errdefs.ErrAlreadyExists)
		}
		if st, err = stackOf(ctx, key); err != nil || len(st) > 1 {
			return err
		}
		below, err := stackOf(ctx, rebase)
		st = append(st, below...)
		return err
	})
	return st, err
}

// finishLayer makes the spec of the first snapshot of st one of read-only
// layers, and returns the file that holds its own. The path is empty if it is
// no block snapshot.
func (s *Snapshotter) finishLayer(ctx context.Context, st stack) (path string, err error) {
	switch {
	case isTurbo(st[0].info):
		return "", s.finishTurbo(st)
	case isConverting(st[0].info):
		return "", s.finishConversion(ctx, st)
	}
	id := st[0].id
	v, err := spec.Load(s.at.spec(id))
	switch {
	case err == nil && v.Writable():
		return s.at.sealed(id), s.withDevice(ctx, id, func(ctx context.Context) error { return s.seal(ctx, id, v) })
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	path, ok := s.localLayer(id)
	if !ok || err == nil { // a plain layer, or one whose spec is complete
		return path, nil
	}
	v, err = s.compose(st[0], st[1:], spec.Lower{})
	if errors.Is(err, errPlain) {
		return "", nil // a file of that name in a plain image
	}
	if err != nil {
		return "", err
	}
	return path, s.saveSpec(id, v)
}

// seal turns the writable layer of snapshot id into a read-only one.
func (s *Snapshotter) seal(ctx context.Context, id string, v *spec.Volume) error {
	if err := s.release(ctx, id); err != nil {
		return err
	}
	if err := s.detach(ctx, id); err != nil { // without a mark too
		return err
	}
	if err := s.opts.Block.Seal(ctx, s.at.spec(id), s.at.sealed(id)); err != nil {
		return err
	}
	dropTrace(v)
	v.Lowers = append(v.Lowers, spec.Lower{Dir: s.at.fs(id)})
	v.Upper = spec.Upper{}
	return s.saveSpec(id, v)
}

// Usage returns what a snapshot takes on disk, without what it shares. A block
// snapshot's is measured now, as its blob may have been downloaded since.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var (
		n     node
		usage snapshots.Usage
	)
	err := s.view(ctx, func(ctx context.Context) (err error) {
		n.id, n.info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil || n.info.Kind == snapshots.KindCommitted && !s.isBlock(n) {
		return usage, err
	}
	roots := []string{s.at.fs(n.id)}
	entries, err := os.ReadDir(s.at.block(n.id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return snapshots.Usage{}, err
	}
	if ok, err := isRegular(s.at.layerTar(n.id)); err == nil && ok {
		roots = append(roots, s.at.layerTar(n.id))
	}
	for _, e := range entries {
		if !e.IsDir() { // but for the mount point
			roots = append(roots, s.at.block(n.id)+"/"+e.Name())
		}
	}
	du, err := continuity.DiskUsage(ctx, roots...)
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	return snapshots.Usage(du), nil
}
