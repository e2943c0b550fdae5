// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// The labels of a snapshot. containerd copies layer annotations that begin
// with "containerd.io/snapshot/" onto them, so that any may come from the
// author of an image.
const (
	// LabelImageRef and LabelCRIImageRef name the image that a layer is pulled
	// for; one of them tells where its blob is.
	LabelImageRef    = "containerd.io/snapshot/image-ref"
	LabelCRIImageRef = "containerd.io/snapshot/cri.image-ref"

	// LabelManifestDigest and LabelLayerDigest say what of the image is pulled.
	LabelManifestDigest = "containerd.io/snapshot/cri.manifest-digest"
	LabelLayerDigest    = "containerd.io/snapshot/cri.layer-digest"

	// LabelBlobDigest and LabelBlobSize mark a layer as a block layer.
	LabelBlobDigest = "containerd.io/snapshot/overlaybd/blob-digest"
	LabelBlobSize   = "containerd.io/snapshot/overlaybd/blob-size"

	// LabelFSType is the file system on the layer's device, with options:
	// "type;mount options;mkfs arguments".
	LabelFSType = "containerd.io/snapshot/overlaybd/blob-fs-type"

	// LabelDownload with the value "download" has a block layer downloaded and
	// unpacked as others are.
	LabelDownload = "containerd.io/snapshot/overlaybd/download-remote-blob"

	// LabelWritable, a [Mode], says how a container writes.
	LabelWritable = "containerd.io/snapshot/overlaybd.writable"

	// LabelVSize is the capacity in GiB of a writable layer without a parent.
	LabelVSize = "containerd.io/snapshot/overlaybd/vsize"

	// LabelLocalCommitPath is set on a committed block layer to its file, from
	// which an image builder takes it.
	LabelLocalCommitPath = "containerd.io/snapshot/overlaybd.localcommitpath"

	// LabelRemote marks committed layers whose blob was not downloaded.
	LabelRemote = "containerd.io/snapshot/remote"

	// LabelConvert, with any value, has a layer converted on the node: its blob
	// is kept as it is, and metadata beside it make a block layer of it.
	LabelConvert = "containerd.io/snapshot/overlaybd/convert2turbo-oci"

	// LabelTargetDigest and LabelTargetMediaType are those of the ordinary
	// layer that a TurboOCI layer points into.
	LabelTargetDigest    = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest"
	LabelTargetMediaType = "containerd.io/snapshot/overlaybd/turbo-oci/target-media-type"

	// LabelType with the value "image" says that a snapshot is no rootfs.
	LabelType = "containerd.io/snapshot/type"

	// What TurboOCI was called once.
	labelOldTargetDigest    = "containerd.io/snapshot/overlaybd/fastoci/target-digest"
	labelOldTargetMediaType = "containerd.io/snapshot/overlaybd/fastoci/target-media-type"

	labelAcceleration = "containerd.io/snapshot/overlaybd/acceleration-layer"

	// The values that are fixed.
	valueDownload = "download"
	valueRemote   = "remote snapshot"
	valueImage    = "image"
	valueYes      = "yes"
)

// defaultVSizeGB is the capacity of a writable layer without a parent whose
// label does not say: the reference's.
const defaultVSizeGB = 64

// unpacks reports whether a snapshot is one that a layer is unpacked into.
func unpacks(info snapshots.Info) bool { return info.Labels[snapshots.LabelSnapshotRef] != "" }

// isBlockLayer reports whether labels describe a block layer and tell where
// its blob is.
func isBlockLayer(labels map[string]string) bool {
	return labels[LabelBlobDigest] != "" && labels[LabelBlobSize] != "" && imageRef(labels) != ""
}

// imageRef prefers the label of a client that pulls block images over CRI's.
func imageRef(labels map[string]string) string {
	if ref := labels[LabelImageRef]; ref != "" {
		return ref
	}
	return labels[LabelCRIImageRef]
}

// parseLayer returns the layer that labels describe. Hosts in plain are spoken
// to by HTTP.
func parseLayer(labels map[string]string, plain []string) (spec.Lower, error) {
	l, err := parseBlob(labels, plain)
	if err != nil {
		return spec.Lower{}, badLabels(err)
	}
	return l, nil
}

func badLabels(err error) error {
	return fmt.Errorf("labels of the layer: %w: %w", err, errdefs.ErrInvalidArgument)
}

func parseBlob(labels map[string]string, plain []string) (spec.Lower, error) {
	dgst := digest.Digest(labels[LabelBlobDigest])
	if err := dgst.Validate(); err != nil || dgst.Algorithm() != digest.SHA256 {
		return spec.Lower{}, fmt.Errorf("%s %q is not a sha256 digest", LabelBlobDigest, string(dgst))
	}
	size, err := strconv.ParseInt(labels[LabelBlobSize], 10, 64)
	if err != nil || size <= 0 {
		return spec.Lower{}, fmt.Errorf("%s %q is not a size in bytes", LabelBlobSize, labels[LabelBlobSize])
	}
	repo, err := BlobURL(imageRef(labels), plain)
	if err != nil {
		return spec.Lower{}, err
	}
	if _, err := parseFS(labels, ""); err != nil {
		return spec.Lower{}, err
	}
	return spec.Lower{Digest: dgst, Size: size, RepoBlobURL: repo}, nil
}

var (
	// hostName is a registry: a DNS name or IPv4 address, or an IPv6 address in
	// brackets, and a port.
	hostName = regexp.MustCompile(`^([0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?$`)

	// repository is a path as the distribution specification has it.
	repository = regexp.MustCompile(`^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)
)

// BlobURL returns the URL of the blobs of the repository that image reference
// ref is in. Hosts in plain are spoken to by HTTP.
func BlobURL(ref string, plain []string) (string, error) {
	r, err := reference.Parse(ref)
	if err != nil {
		return "", fmt.Errorf("image reference %q: %w", ref, err)
	}
	host, repo, _ := strings.Cut(r.Locator, "/")
	// Parse drops what is no part of a reference, such as a user or a fragment.
	tag := strings.TrimPrefix(ref, r.Locator)
	whole := tag == "" || tag != ref && (tag[0] == ':' || tag[0] == '@')
	if !whole || !hostName.MatchString(host) || !repository.MatchString(repo) {
		return "", fmt.Errorf("image reference %q is not a registry and a repository", ref)
	}
	scheme := "https"
	if slices.Contains(plain, host) {
		scheme = "http"
	}
	if host == "docker.io" {
		host = "registry-1.docker.io"
	}
	return scheme + "://" + host + "/v2/" + repo + "/blobs", nil
}

// parseFS returns the file system that labels ask for, or else fallback.
func parseFS(labels map[string]string, fallback string) (blockmount.FS, error) {
	text := labels[LabelFSType]
	if text == "" {
		text = fallback
	}
	if text == "" {
		return blockmount.FS{}, nil
	}
	fs, err := blockmount.ParseFS(text)
	if err != nil {
		return blockmount.FS{}, fmt.Errorf("%s: %w", LabelFSType, err)
	}
	return fs, nil
}

// parseMode returns how a container with these labels writes.
func parseMode(labels map[string]string, fallback Mode) (Mode, error) {
	m := Mode(labels[LabelWritable])
	if m == "" {
		return fallback, nil
	}
	if !slices.Contains(modes, m) {
		return "", fmt.Errorf("%s %q is none of %v: %w", LabelWritable, m, modes, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

// parseVSize returns the capacity in GiB that labels ask for.
func parseVSize(labels map[string]string) (int, error) {
	text := labels[LabelVSize]
	if text == "" {
		return defaultVSizeGB, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%s %q is not a number of GiB: %w", LabelVSize, text, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// parseIDMap returns the ids of the host that are root in a container whose
// snapshot has these labels, and false if it has none.
func parseIDMap(labels map[string]string) (uid, gid int, ok bool, err error) {
	u, hasUID := labels[snapshots.LabelSnapshotUIDMapping]
	g, hasGID := labels[snapshots.LabelSnapshotGIDMapping]
	if !hasUID && !hasGID {
		return 0, 0, false, nil
	}
	if uid, err = hostRoot(u); err == nil {
		gid, err = hostRoot(g)
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("labels %s, %s: %w: %w", snapshots.LabelSnapshotUIDMapping, snapshots.LabelSnapshotGIDMapping, err, errdefs.ErrInvalidArgument)
	}
	return uid, gid, true, nil
}

// hostRoot returns what id 0 is in "container:host:size[,…]".
func hostRoot(mapping string) (int, error) {
	for part := range strings.SplitSeq(mapping, ",") {
		var id, host, size uint32
		if _, err := fmt.Sscanf(part, "%d:%d:%d", &id, &host, &size); err != nil {
			return 0, fmt.Errorf("id mapping %q: %w", mapping, err)
		}
		if id == 0 && size > 0 {
			return int(host), nil
		}
	}
	return 0, fmt.Errorf("id mapping %q has no root", mapping)
}
