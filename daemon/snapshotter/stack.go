// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/image/spec"
)

// A node is one snapshot of a stack.
type node struct {
	id   string
	info snapshots.Info
}

// A stack is a snapshot and those below it, itself first.
type stack []node

// stackOf returns the stack of the snapshot name, empty if name is. It runs in
// a transaction.
func stackOf(ctx context.Context, name string) (stack, error) {
	var st stack
	for name != "" {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, err
		}
		st = append(st, node{id: id, info: info})
		name = info.Parent
	}
	return st, nil
}

// errPlain says that a snapshot has no spec, and should have none.
var errPlain = errors.New("not a block snapshot")

// volume returns the spec of the first snapshot of st, or errPlain. One that
// was lost (specs are not synced when they are written) is composed again.
func (s *Snapshotter) volume(st stack) (*spec.Volume, error) {
	if len(st) == 0 {
		return nil, errPlain
	}
	v, err := spec.Load(s.at.spec(st[0].id))
	if err == nil {
		return v, nil
	}
	l, ok, labelErr := s.ownLayer(st[0])
	switch {
	case labelErr != nil:
		return nil, labelErr
	case ok:
		return s.compose(st[0], st[1:], l)
	case errors.Is(err, fs.ErrNotExist):
		return nil, errPlain
	}
	return nil, err
}

// ownLayer returns the layer that snapshot n adds to those below, and false if
// it is not a block layer.
func (s *Snapshotter) ownLayer(n node) (spec.Lower, bool, error) {
	switch {
	case isTurbo(n.info) && n.info.Labels[LabelRemote] != "":
		l, err := parseRemoteTurbo(n.info.Labels, s.opts.PlainHTTP)
		return l, true, err
	case isTurbo(n.info):
		l, err := parseTurbo(n.info.Labels, s.opts.PlainHTTP)
		return l, true, err
	case unpacks(n.info) && isBlockLayer(n.info.Labels):
		l, err := parseLayer(n.info.Labels, s.opts.PlainHTTP)
		return l, true, err
	case s.isConverted(n.id):
		return s.convertedLayer(n.id), true, nil
	}
	return spec.Lower{}, n.info.Labels[LabelLocalCommitPath] != "", nil
}

// isBlock reports whether n, a committed snapshot, is a block snapshot: it has
// a spec, or its labels say that it had one.
func (s *Snapshotter) isBlock(n node) bool {
	if _, err := os.Lstat(s.at.spec(n.id)); err == nil {
		return true
	}
	_, ok, _ := s.ownLayer(n) // with bad labels it is one that cannot be read
	return ok
}

// deviceOf returns the part of st that the device for its first snapshot, an
// active or view one, is made of: st itself for a device of its own, or what is
// below from the nearest block snapshot on. It is empty if there is no device.
func (s *Snapshotter) deviceOf(st stack) (stack, error) {
	if isStaging(st[0].info) {
		return nil, nil
	}
	if st[0].info.Kind == snapshots.KindActive {
		v, err := spec.Load(s.at.spec(st[0].id))
		switch {
		case err == nil && v.Writable() && !s.isSealed(st[0].id):
			return st, nil
		case err == nil:
			return nil, fmt.Errorf("snapshot %s is sealed and can only be committed or removed: %w", st[0].info.Name, errdefs.ErrFailedPrecondition)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	i := slices.IndexFunc(st[1:], s.isBlock)
	if i < 0 {
		return nil, nil
	}
	return st[1+i:], nil
}

// isSealed reports whether the writable layer of snapshot id has been sealed,
// though its spec may not say so yet. Attached again, it would get another one,
// empty, and a Commit made again would take that.
func (s *Snapshotter) isSealed(id string) bool {
	_, err := os.Lstat(s.at.sealed(id))
	return err == nil
}

// isStaging reports whether a snapshot is only a directory to put files into:
// the unpacked blob of a block layer, or what a client calls no rootfs.
func isStaging(info snapshots.Info) bool {
	return info.Kind == snapshots.KindActive &&
		(isTurbo(info) || isConverting(info) || unpacks(info) && isBlockLayer(info.Labels) || info.Labels[LabelType] == valueImage)
}

// compose returns the spec of snapshot n, which puts layer l on those of the
// stack below.
func (s *Snapshotter) compose(n node, below stack, l spec.Lower) (*spec.Volume, error) {
	v := &spec.Volume{}
	if len(below) > 0 {
		base, err := s.volume(below)
		if err != nil {
			return nil, fmt.Errorf("parent %s: %w", below[0].info.Name, err)
		}
		v = base
	}
	dropTrace(v)
	if l.TargetFile == "" {
		l.Dir = s.at.fs(n.id)
	}
	if l.TargetDigest != "" {
		if err := s.nameFiles(&l, n, v); err != nil {
			return nil, fmt.Errorf("TurboOCI layer for %s: %w: %w", l.TargetDigest, err, errdefs.ErrFailedPrecondition)
		}
	}
	if l.RepoBlobURL != "" && v.RepoBlobURL != l.RepoBlobURL {
		nameRepository(v)
		v.RepoBlobURL = l.RepoBlobURL
	}
	l.RepoBlobURL = ""
	v.Lowers = append(v.Lowers, l)
	v.AccelerationLayer = n.info.Labels[labelAcceleration] == valueYes
	v.Upper = spec.Upper{}
	v.ResultFile = s.at.result(n.id)
	if err := v.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return v, nil
}

// dropTrace takes an acceleration layer off v: its trace is of no use to a
// longer stack.
func dropTrace(v *spec.Volume) {
	if v.AccelerationLayer {
		v.Lowers, v.AccelerationLayer = v.Lowers[:len(v.Lowers)-1], false
	}
}

// nameRepository writes the volume's repository into the layers that rely on
// it, before the volume gets another. The reference knows only one per volume:
// that of the topmost layer.
func nameRepository(v *spec.Volume) {
	for i := range v.Lowers {
		if l := &v.Lowers[i]; (l.Digest != "" || l.TargetDigest != "") && l.RepoBlobURL == "" {
			l.RepoBlobURL = v.RepoBlobURL
		}
	}
}

// writeSpec writes v as the spec of snapshot id without syncing it, for use in
// a transaction: nobody reads it before that commits, and if the power fails
// then, volume composes it again.
func (s *Snapshotter) writeSpec(id string, v *spec.Volume) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.at.block(id), 0o711); err != nil {
		return err
	}
	return os.WriteFile(s.at.spec(id), text, 0o600)
}

// saveSpec writes v as the spec of snapshot id, durably.
func (s *Snapshotter) saveSpec(id string, v *spec.Volume) error {
	if err := os.MkdirAll(s.at.block(id), 0o711); err != nil {
		return err
	}
	return v.Save(s.at.spec(id))
}

// localLayer returns the layer file in the directory of snapshot id, if there
// is one.
func (s *Snapshotter) localLayer(id string) (path string, ok bool) {
	for _, path := range []string{s.at.commit(id), s.at.sealed(id)} {
		if isLayerFile(path) {
			return path, true
		}
	}
	return "", false
}

// layerMagics begin a layer file: the headers of ZFile and LSMT.
var layerMagics = []string{
	"ZFile\x00\x01\x00tuji.yyf@Alibaba",
	"LSMT\x00\x01\x02\x00\x65\x7e\x63\xd2\x94\x44\x08\x4c\xa2\xd2\xc8\xec\x4f\xcf\xae\x8a",
}

// isLayerFile reports whether path is a layer, raw or wrapped in a tar. The
// file may have been unpacked from a stranger's archive: links are not followed
// and a pipe does not block.
func isLayerFile(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return false
	}
	for _, off := range layerStarts {
		var head [24]byte
		if _, err := f.ReadAt(head[:], off); err != nil {
			return false
		}
		if slices.Contains(layerMagics, string(head[:])) {
			return off == 0 || isTar(f)
		}
	}
	return false
}

// layerStarts are where a layer may start, in bytes: at 0 if it is not wrapped,
// after one tar header, or after a pax header, its record and the tar header.
var layerStarts = []int64{0, 512, 1536}

func isTar(r io.ReaderAt) bool {
	var magic [5]byte
	_, err := r.ReadAt(magic[:], 257)
	return err == nil && string(magic[:]) == "ustar"
}
