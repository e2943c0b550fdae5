// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/turbo"
)

// A TurboOCI layer is small: it holds the metadata of a file system whose
// content lies in an ordinary layer, its target. The block daemon fetches and
// unpacks it. Where a client wants it downloaded it is unpacked as any other,
// and its spec is written when it is committed.

// What a layer may hold at most, in bytes. They are a few percent of a layer;
// the index is read into memory.
const (
	maxMeta  = 8 << 30
	maxIndex = 1 << 30
)

// isTurbo reports whether a snapshot is for the files of a TurboOCI layer.
func isTurbo(info snapshots.Info) bool { return unpacks(info) && TargetOf(info.Labels) != "" }

// TargetOf returns the digest of a TurboOCI layer's target, in the annotations
// of the layer or the labels of its snapshot; "" if it is no such layer.
func TargetOf(labels map[string]string) string {
	return firstOf(labels[LabelTargetDigest], labels[labelOldTargetDigest])
}

// targetType returns the media type of a TurboOCI layer's target.
func targetType(labels map[string]string) string {
	return firstOf(labels[LabelTargetMediaType], labels[labelOldTargetMediaType])
}

// parseTurbo returns the TurboOCI layer that labels describe, but for its files.
func parseTurbo(labels map[string]string, plain []string) (spec.Lower, error) {
	target := digest.Digest(TargetOf(labels))
	if err := target.Validate(); err != nil || target.Algorithm() != digest.SHA256 {
		return spec.Lower{}, badLabels(fmt.Errorf("target digest %q of a TurboOCI layer is not a sha256 digest", string(target)))
	}
	ref := imageRef(labels)
	if ref == "" {
		return spec.Lower{}, badLabels(fmt.Errorf("neither %s nor %s tells where the target %s of a TurboOCI layer is: pull the image with rpull, or over CRI with snapshot annotations enabled",
			LabelImageRef, LabelCRIImageRef, target))
	}
	repo, err := BlobURL(ref, plain)
	if err == nil {
		_, err = parseFS(labels, "")
	}
	if err != nil {
		return spec.Lower{}, badLabels(err)
	}
	return spec.Lower{TargetDigest: target, RepoBlobURL: repo}, nil
}

// parseRemoteTurbo returns the TurboOCI layer that labels describe and whose own
// blob is still in the registry, but for the names of its files.
func parseRemoteTurbo(labels map[string]string, plain []string) (spec.Lower, error) {
	l, err := parseTurbo(labels, plain)
	if err != nil {
		return l, err
	}
	blob, err := parseLayer(labels, plain)
	l.Digest, l.Size = blob.Digest, blob.Size
	return l, err
}

// turboLabels are what parseTurbo and compose need to know of a layer.
var turboLabels = []string{
	snapshots.LabelSnapshotRef, LabelImageRef, LabelCRIImageRef, LabelTargetDigest, LabelTargetMediaType,
	labelOldTargetDigest, labelOldTargetMediaType, LabelFSType, labelAcceleration,
}

// keepLabels returns the labels that a snapshot active until now is committed
// with: containerd's, which replace all it had, and for a TurboOCI layer what
// its spec can be written from again.
func keepLabels(labels map[string]string, active snapshots.Info) map[string]string {
	labels = maps.Clone(labels)
	if !isTurbo(active) {
		return labels
	}
	if labels == nil {
		labels = make(map[string]string)
	}
	for _, key := range turboLabels {
		if value := active.Labels[key]; value != "" {
			labels[key] = value
		}
	}
	return labels
}

// finishTurbo writes the spec of st, whose first snapshot is a TurboOCI layer
// that was unpacked.
func (s *Snapshotter) finishTurbo(st stack) error {
	n := st[0]
	l, err := parseTurbo(n.info.Labels, s.opts.PlainHTTP)
	if err != nil {
		return err
	}
	v, err := s.compose(n, st[1:], l)
	if err != nil {
		return onPlain(err)
	}
	if err := s.saveSpec(n.id, v); err != nil {
		return err
	}
	s.expect(spec.Lower{RepoBlobURL: l.RepoBlobURL}, "") // a connection is all it can prepare
	return nil
}

// nameFiles fills in the files of l, the TurboOCI layer of snapshot n, which
// lies on below: those that are there, or that the block daemon will unpack.
func (s *Snapshotter) nameFiles(l *spec.Lower, n node, below *spec.Volume) error {
	if l.Digest == "" || s.isUnpacked(n.id) {
		l.Digest, l.Size = "", 0
		return s.findMeta(l, n, below)
	}
	for _, fs := range s.fileSystems(below) {
		l.TurboMeta = append(l.TurboMeta, fs+turbo.MetaSuffix)
	}
	switch kind := targetType(n.info.Labels); {
	case strings.HasSuffix(kind, "gzip"):
		l.GzipIndex = s.at.gzipIndex(n.id)
	case strings.HasSuffix(kind, "zstd"):
		l.GzipIndex = s.at.zstdIndex(n.id)
	}
	return nil
}

// isUnpacked reports whether there are files of a TurboOCI layer in snapshot id.
func (s *Snapshotter) isUnpacked(id string) bool {
	return slices.ContainsFunc([]string{"ext4", "erofs"}, func(fs string) bool {
		_, err := os.Lstat(s.at.meta(id, fs))
		return err == nil
	})
}

// findMeta fills in the files of l, a TurboOCI layer that is unpacked in
// snapshot n and lies on below. They come from a stranger's archive.
func (s *Snapshotter) findMeta(l *spec.Lower, n node, below *spec.Volume) error {
	var err error
	if l.File, err = s.metaFile(n.id, below); err != nil {
		return err
	}
	l.GzipIndex, err = s.indexFile(n.id, targetType(n.info.Labels))
	return err
}

// metaFile chooses among the metadata that snapshot id has.
func (s *Snapshotter) metaFile(id string, below *spec.Volume) (path string, err error) {
	choice := s.fileSystems(below)
	for _, fs := range choice {
		path := s.at.meta(id, fs)
		ok, err := checkFile(path, maxMeta)
		switch {
		case err != nil:
			return "", err
		case ok && isLayerFile(path):
			return path, nil
		case ok:
			return "", fmt.Errorf("%s is no layer", path)
		}
	}
	return "", fmt.Errorf("it holds no metadata for %s", strings.Join(choice, " or "))
}

// fileSystems lists those whose metadata can be used on below, best first. A
// layer is an edit of the file system below it, so all of an image are of one.
func (s *Snapshotter) fileSystems(below *spec.Volume) []string {
	if _, err := os.Lstat(s.at.onlyExt4()); err == nil {
		return []string{"ext4"}
	}
	for _, l := range below.Lowers {
		if fs, ok := strings.CutSuffix(filepath.Base(l.File), turbo.MetaSuffix); ok {
			return []string{fs}
		}
		if len(l.TurboMeta) > 0 {
			return fsNames(l.TurboMeta)
		}
	}
	if len(below.Lowers) > 0 {
		return []string{"ext4", "erofs"} // as most layers are that are no TurboOCI ones
	}
	return slices.DeleteFunc(slices.Clone(s.opts.TurboFS), func(fs string) bool {
		return fs != "ext4" && !blockmount.Supported(fs)
	})
}

// fsNames returns the file systems that files with these names are the metadata
// of.
func fsNames(files []string) (names []string) {
	for _, file := range files {
		names = append(names, strings.TrimSuffix(file, turbo.MetaSuffix))
	}
	return names
}

// indexFile returns the index of the target of snapshot id, or nothing if
// that is not compressed. Media types may be wrong about how it is.
func (s *Snapshotter) indexFile(id, mediaType string) (path string, err error) {
	var found []string
	for _, path := range []string{s.at.gzipIndex(id), s.at.zstdIndex(id)} {
		ok, err := checkFile(path, maxIndex)
		if err != nil {
			return "", err
		}
		if ok {
			found = append(found, path)
		}
	}
	gzip, zstd := strings.HasSuffix(mediaType, "gzip"), strings.HasSuffix(mediaType, "zstd")
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 2 && gzip:
		return found[0], nil
	case len(found) == 2 && zstd:
		return found[1], nil
	case len(found) == 2:
		return "", errors.New("it holds an index of a gzip and one of a zstd target")
	case gzip || zstd:
		return "", fmt.Errorf("its target is a %s, and it holds no index of that", mediaType)
	}
	return "", nil
}

// checkFile reports whether there is a file at path, and fails if it is not a
// regular one of 1 to limit bytes. Links are not followed and a pipe does not
// block.
func checkFile(path string, limit int64) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, unix.ELOOP):
		return false, fmt.Errorf("%s is a symbolic link", path)
	case err != nil:
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return false, err
	case !st.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a regular file", path)
	case st.Size() == 0 || st.Size() > limit:
		return false, fmt.Errorf("%s has %d bytes, which are not 1 to %d", path, st.Size(), limit)
	}
	return true, nil
}
