// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/image/zfile"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestCommitBlob: the blob shows the disk that the reference's blob of the same
// layer shows. (The bytes differ: the reference tags the layer and rewrites the
// header of a ZFile once it is complete.)
func TestCommitBlob(t *testing.T) {
	_, golden := need.Golden(t, "rw/a.sealed", "rw/a.commit", "rw/a.commit.z.tar")
	layer := open(t, golden["rw/a.commit"].Path)
	opened, err := lsmt.Open(t.Context(), layer)
	if err != nil {
		t.Fatal(err)
	}
	names := opened.Trailer()
	opts := convert.BlobOptions{ChainID: chain(names.UUID), Parent: chain(names.ParentUUID), TempDir: t.TempDir()}
	blob, err := convert.CommitBlob(t.Context(), open(t, golden["rw/a.sealed"].Path), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	d := blob.Descriptor()
	if sum, err := digest.FromReader(io.NewSectionReader(blob, 0, d.Size)); err != nil || sum != d.Digest {
		t.Errorf("the blob is %s, reported as %s; %v", sum, d.Digest, err)
	}
	if _, err := blob.ReadAt(make([]byte, 1), d.Size); !errors.Is(err, io.EOF) {
		t.Errorf("it goes on after %d bytes: %v", d.Size, err)
	}
	if got, want := volume(t, blob.Layer()), golden["rw/a.commit.z.tar"].Volume; got != want {
		t.Errorf("the disk is %s, want %s", got, want)
	}
	left, err := os.ReadDir(opts.TempDir)
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files %v, %v", left, err)
	}
}

// volume returns the hash of the disk in a blob.
func volume(t *testing.T, blob fetcher.Blob) string {
	t.Helper()
	layer, err := image.OpenLayer(t.Context(), blob, "blob")
	if err != nil {
		t.Fatal(err)
	}
	disk, err := lsmt.Merge([]*lsmt.Layer{layer})
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, disk.Size())
	if _, err := disk.ReadAt(t.Context(), content, 0); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// chain returns a chain ID whose layer has the UUID.
func chain(uuid string) digest.Digest {
	if uuid == "" {
		return ""
	}
	hex := strings.ToLower(strings.ReplaceAll(uuid, "-", ""))
	return digest.NewDigestFromEncoded(digest.SHA256, hex+strings.Repeat("0", 32))
}

func open(t *testing.T, name string) *file.Blob {
	t.Helper()
	b, err := file.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// TestCommitBlobOptions: what was asked for is what readers find.
func TestCommitBlobOptions(t *testing.T) {
	_, golden := need.Golden(t, "rw/a.sealed")
	compression := zfile.Options{Algorithm: zfile.Zstd, BlockSize: 16 << 10}
	blob, err := convert.CommitBlob(t.Context(), open(t, golden["rw/a.sealed"].Path), convert.BlobOptions{
		ChainID: digest.FromString("layer"), Parent: digest.FromString("parent"), Compression: compression,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	payload, err := tarblob.Open(t.Context(), blob.Layer())
	if err != nil {
		t.Fatal(err)
	}
	z, err := zfile.Open(t.Context(), payload)
	if err != nil {
		t.Fatal(err)
	}
	if got := z.Info(); got.Algorithm != compression.Algorithm || got.BlockSize != compression.BlockSize {
		t.Errorf("compressed as %+v", got)
	}
	layer, err := lsmt.Open(t.Context(), z)
	if err != nil {
		t.Fatal(err)
	}
	h, err := layer.Header(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for what, ids := range map[string][2]string{
		"layer":  {h.UUID, convert.LayerUUID(digest.FromString("layer"))},
		"parent": {h.ParentUUID, convert.LayerUUID(digest.FromString("parent"))},
	} {
		if !strings.EqualFold(ids[0], ids[1]) {
			t.Errorf("%s UUID %s, want %s", what, ids[0], ids[1])
		}
	}
}
