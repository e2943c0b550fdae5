// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"crypto/sha256"
	"encoding/hex"
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

// TestSealedBlob: the blob shows the disk that the reference's blob of the same
// layer shows. (The bytes differ: the reference tags the layer and rewrites the
// header of a ZFile once it is complete.)
func TestSealedBlob(t *testing.T) {
	_, golden := need.Golden(t, "rw/a.sealed", "rw/a.commit", "rw/a.commit.z.tar")
	layer := open(t, golden["rw/a.commit"].Path)
	header, err := lsmt.Open(t.Context(), layer)
	if err != nil {
		t.Fatal(err)
	}
	opts := convert.BlobOptions{ChainID: chain(header.Header().UUID), Parent: chain(header.Header().ParentUUID), TempDir: t.TempDir()}
	name := sealedBlob(t, golden["rw/a.sealed"].Path, opts)
	if got, want := volume(t, open(t, name)), golden["rw/a.commit.z.tar"].Volume; got != want {
		t.Errorf("the disk is %s, want %s", got, want)
	}
	left, err := os.ReadDir(opts.TempDir)
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files %v, %v", left, err)
	}
}

// sealedBlob writes the blob of a sealed layer to a file.
func sealedBlob(t *testing.T, sealed string, opts convert.BlobOptions) (name string) {
	t.Helper()
	blob, err := convert.SealedBlob(t.Context(), open(t, sealed), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	desc := blob.Descriptor()
	text := make([]byte, desc.Size)
	if _, err := blob.ReadAt(text, 0); err != nil {
		t.Fatal(err)
	}
	if got := digest.FromBytes(text); got != desc.Digest {
		t.Errorf("the blob is %s, called %s", got, desc.Digest)
	}
	name = t.TempDir() + "/blob"
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
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

// TestBlobOptions: what was asked for is what readers find.
func TestBlobOptions(t *testing.T) {
	_, golden := need.Golden(t, "rw/a.sealed")
	compression := zfile.Options{Algorithm: zfile.Zstd, BlockSize: 16 << 10}
	name := sealedBlob(t, golden["rw/a.sealed"].Path, convert.BlobOptions{
		ChainID: digest.FromString("layer"), Parent: digest.FromString("parent"), Compression: compression,
	})
	payload, err := tarblob.Open(t.Context(), open(t, name))
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
	for what, ids := range map[string][2]string{
		"layer":  {layer.Header().UUID, convert.LayerUUID(digest.FromString("layer"))},
		"parent": {layer.Header().ParentUUID, convert.LayerUUID(digest.FromString("parent"))},
	} {
		if !strings.EqualFold(ids[0], ids[1]) {
			t.Errorf("%s UUID %s, want %s", what, ids[0], ids[1])
		}
	}
}
