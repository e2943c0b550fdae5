// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/image/spec"
)

// Prepare creates an active snapshot. If it is for a layer whose blob can stay
// where it is, that is committed instead, and Prepare fails with
// errdefs.ErrAlreadyExists to say that there is nothing to unpack.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View creates a read-only snapshot.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	base := snapshots.Info{Kind: kind, Name: key, Parent: parent}
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return nil, err
		}
	}
	if kind == snapshots.KindActive && unpacks(base) {
		if err := s.createLazily(ctx, base); err != nil {
			return nil, err
		}
	}
	err := s.createDir(ctx, base)
	if err != nil {
		return nil, fmt.Errorf("create snapshot %s: %w", key, err)
	}
	mounts, err := s.mounts(ctx, key)
	if err != nil {
		err = fmt.Errorf("create snapshot %s: %w", key, err)
		return nil, errors.Join(err, s.rollback(ctx, key))
	}
	return mounts, nil
}

// createLazily commits the layer that base is for, if its content can stay
// where it is, and fails with errdefs.ErrAlreadyExists then. Without an error
// the layer is to be unpacked.
func (s *Snapshotter) createLazily(ctx context.Context, base snapshots.Info) error {
	if !staysRemote(base) {
		return s.createAttached(ctx, base)
	}
	parse := parseLayer
	if isTurbo(base) {
		parse = parseRemoteTurbo
	}
	l, err := parse(base.Labels, s.opts.PlainHTTP)
	if err != nil {
		return fmt.Errorf("create layer %s: %w", base.Labels[snapshots.LabelSnapshotRef], err)
	}
	return s.createRemote(ctx, base, l, "")
}

// createRemote commits the layer l that stays in its registry, but for its
// files in the directory files, in one transaction and without asking anyone. On
// success it fails with errdefs.ErrAlreadyExists.
func (s *Snapshotter) createRemote(ctx context.Context, base snapshots.Info, l spec.Lower, files string) error {
	target := base.Labels[snapshots.LabelSnapshotRef]
	base.Labels = maps.Clone(base.Labels)
	base.Labels[LabelRemote] = valueRemote

	var dir, specPath string
	var found bool
	err := s.update(ctx, func(ctx context.Context) (err error) {
		var name string
		if name, found, err = findTarget(ctx, target, base.Parent); err != nil || found {
			return err
		}
		below, err := stackOf(ctx, base.Parent)
		if err != nil {
			return fmt.Errorf("parent %s: %w", base.Parent, err)
		}
		id, err := s.newDir(ctx, base, base.Labels)
		if err != nil {
			return err
		}
		dir, specPath = s.at.dir(id), s.at.spec(id)
		if err := linkFiles(files, s.at.fs(id)); err != nil {
			return err
		}
		v, err := s.compose(node{id, base}, below, l)
		if err == nil {
			err = s.writeSpec(id, v)
		}
		if err != nil {
			return err
		}
		_, err = storage.CommitActive(ctx, base.Name, name, snapshots.Usage{}, snapshots.WithLabels(base.Labels))
		return err
	}, func() { removeFresh(dir) })
	if err = onPlain(err); err != nil {
		return fmt.Errorf("create layer %s: %w", target, err)
	}
	if !found {
		s.expect(l, specPath)
	}
	return fmt.Errorf("target snapshot %q: %w", target, errdefs.ErrAlreadyExists)
}

// staysRemote reports whether base is for a layer whose blob can stay where it
// is.
func staysRemote(base snapshots.Info) bool {
	return isBlockLayer(base.Labels) && base.Labels[LabelDownload] != valueDownload
}

// onPlain explains errPlain where a block layer was to lie on something.
func onPlain(err error) error {
	if errors.Is(err, errPlain) {
		return fmt.Errorf("%w, and a block layer cannot lie on one: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// findTarget looks for the committed snapshot of layer target on parent, as
// containerd will: by its label. Where there is none, it returns the name to
// commit it under: the target itself, which namespaces share, unless a snapshot
// of that name has another parent.
func findTarget(ctx context.Context, target, parent string) (name string, found bool, err error) {
	_, info, _, err := storage.GetInfo(ctx, target)
	switch {
	case errdefs.IsNotFound(err):
		return target, false, nil
	case err != nil:
		return "", false, err
	case info.Parent == parent && info.Kind == snapshots.KindCommitted:
		return target, true, restoreLabel(ctx, info, target)
	}
	filter := fmt.Sprintf("labels.%q==%q,parent==%q", snapshots.LabelSnapshotRef, target, parent)
	err = storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
		found = found || info.Kind == snapshots.KindCommitted
		return nil
	}, filter)
	return target + " on " + parent, found, err
}

// restoreLabel gives a snapshot back the label by which containerd finds it,
// without which the layer could never be pulled again.
func restoreLabel(ctx context.Context, info snapshots.Info, target string) error {
	if info.Labels[snapshots.LabelSnapshotRef] == target {
		return nil
	}
	if info.Labels == nil {
		info.Labels = make(map[string]string)
	}
	info.Labels[snapshots.LabelSnapshotRef] = target
	_, err := storage.UpdateInfo(ctx, info, "labels."+snapshots.LabelSnapshotRef)
	return err
}

// createDir creates the snapshot base with its directory and, where it is to
// have a device of its own, that device's spec.
func (s *Snapshotter) createDir(ctx context.Context, base snapshots.Info) error {
	var dir string
	return s.update(ctx, func(ctx context.Context) error {
		below, err := stackOf(ctx, base.Parent)
		if err != nil {
			return err
		}
		if err := s.settleConversion(&base, below); err != nil {
			return err
		}
		id, err := s.newDir(ctx, base, base.Labels)
		if err != nil {
			return err
		}
		dir = s.at.dir(id)
		if err := s.chown(id, below, base.Labels); err != nil {
			return err
		}
		return s.createSpec(id, below, base)
	}, func() { removeFresh(dir) })
}

// newDir inserts base into the metadata and makes its directory.
func (s *Snapshotter) newDir(ctx context.Context, base snapshots.Info, labels map[string]string) (id string, err error) {
	for {
		snap, err := storage.CreateSnapshot(ctx, base.Kind, base.Name, base.Parent, snapshots.WithLabels(labels))
		if err != nil {
			return "", err
		}
		err = os.Mkdir(s.at.dir(snap.ID), 0o700)
		if err == nil {
			return snap.ID, s.fillDir(snap.ID, base.Kind, labels)
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		// The directory of a snapshot whose metadata are lost, and maybe its
		// device: Cleanup's business. Use up the id.
		if _, _, err := storage.Remove(ctx, base.Name); err != nil {
			return "", err
		}
	}
}

func (s *Snapshotter) fillDir(id string, kind snapshots.Kind, labels map[string]string) error {
	err := os.Mkdir(s.at.fs(id), 0o755)
	if err == nil {
		err = os.Chmod(s.at.fs(id), 0o755) // whatever the umask
	}
	if err == nil && kind == snapshots.KindActive {
		err = os.Mkdir(s.at.work(id), 0o711)
	}
	if ref := firstOf(labels[LabelCRIImageRef], labels[LabelImageRef]); err == nil && ref != "" {
		err = os.WriteFile(s.at.imageRef(id), []byte(ref), 0o600)
	}
	return err
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// removeFresh removes a directory made in a transaction that failed. Nothing
// can be mounted in it yet.
func removeFresh(dir string) {
	if dir != "" {
		_ = os.RemoveAll(dir) // what stays, Cleanup finds
	}
}

// chown gives the directory of snapshot id the owner that its labels, or else
// its parent, ask for.
func (s *Snapshotter) chown(id string, below stack, labels map[string]string) error {
	uid, gid, ok, err := parseIDMap(labels)
	if err != nil {
		return err
	}
	if !ok {
		if len(below) == 0 {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(s.at.fs(below[0].id), &st); err != nil {
			return fmt.Errorf("stat parent %s: %w", below[0].info.Name, err)
		}
		uid, gid = int(st.Uid), int(st.Gid)
	}
	return os.Lchown(s.at.fs(id), uid, gid)
}

// createSpec writes the spec of a snapshot that will be a block snapshot: a
// layer about to be unpacked, or a container with a device of its own.
func (s *Snapshotter) createSpec(id string, below stack, base snapshots.Info) error {
	switch {
	case base.Kind != snapshots.KindActive || base.Labels[LabelType] == valueImage:
		return nil
	case isTurbo(base):
		return s.checkParent(below) // the spec needs what is unpacked
	case unpacks(base) && isBlockLayer(base.Labels):
		l, err := parseLayer(base.Labels, s.opts.PlainHTTP)
		if err != nil {
			return err
		}
		v, err := s.compose(node{id, base}, below, l)
		if err != nil {
			return onPlain(err)
		}
		return s.writeSpec(id, v)
	case unpacks(base):
		return nil
	}
	mode, err := parseMode(base.Labels, s.opts.RWMode)
	if err != nil || mode == ModeOverlay {
		return err
	}
	v, err := s.writableSpec(id, below, base.Labels)
	if errors.Is(err, errPlain) {
		return nil // its image is directories: so is it
	}
	if err != nil {
		return err
	}
	if len(below) == 0 {
		if err := s.markUnformatted(id); err != nil {
			return err
		}
	}
	return s.saveSpec(id, v) // nothing else tells where its data are
}

// checkParent fails where no block layer can lie on below.
func (s *Snapshotter) checkParent(below stack) error {
	if len(below) == 0 {
		return nil
	}
	_, err := s.volume(below)
	return onPlain(err)
}

// markUnformatted notes that the device of id has no file system yet. Whoever
// writes the spec next syncs the note too.
func (s *Snapshotter) markUnformatted(id string) error {
	if err := os.Mkdir(s.at.block(id), 0o711); err != nil {
		return err
	}
	return os.WriteFile(s.at.unformatted(id), nil, 0o600)
}

// writableSpec returns the spec of a device for snapshot id to write to.
func (s *Snapshotter) writableSpec(id string, below stack, labels map[string]string) (*spec.Volume, error) {
	v, gb := &spec.Volume{}, 0
	var err error
	if len(below) > 0 {
		v, err = s.volume(below)
	} else {
		gb, err = parseVSize(labels)
	}
	if err != nil {
		return nil, err
	}
	v.Upper = spec.Upper{
		Data: s.at.data(id), Index: s.at.index(id),
		VSizeGB: gb, Sparse: s.opts.WritableLayer == Sparse,
	}
	v.ResultFile = s.at.result(id)
	return v, v.Validate()
}
