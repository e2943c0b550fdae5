// SPDX-License-Identifier: Apache-2.0

package lsmt_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// memBlob is a Blob over bytes in memory.
type memBlob struct {
	data   []byte
	closed atomic.Bool
}

func newBlob(data []byte) *memBlob { return &memBlob{data: data} }

func (m *memBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if m.closed.Load() {
		return 0, fs.ErrClosed
	}
	if off >= int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (m *memBlob) Size() int64  { return int64(len(m.data)) }
func (m *memBlob) Close() error { m.closed.Store(true); return nil }

// goldenFiles unpacks the golden files of one folder and returns a reader of
// them and the digests of the volumes in them.
func goldenFiles(t testing.TB, patterns ...string) (read func(name string) []byte, volume map[string]string) {
	t.Helper()
	dir, files := need.Golden(t, patterns...)
	volume = map[string]string{}
	for name, f := range files {
		volume[name] = f.Volume
	}
	return func(name string) []byte { return readFile(t, filepath.Join(dir, name)) }, volume
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openLayer(t testing.TB, data []byte) *lsmt.Layer {
	t.Helper()
	l, err := lsmt.Open(t.Context(), newBlob(data))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// stackOf merges the sealed layers in data, bottom first.
func stackOf(t testing.TB, data ...[]byte) *lsmt.Stack {
	t.Helper()
	var layers []*lsmt.Layer
	for _, d := range data {
		layers = append(layers, openLayer(t, d))
	}
	s, err := lsmt.Merge(layers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, s) })
	return s
}

func closeAll(t testing.TB, closers ...io.Closer) {
	t.Helper()
	for _, c := range closers {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// volumeSum reads all of v in chunks that fit no boundary of the format and
// returns the SHA-256 in hex.
func volumeSum(t testing.TB, v backend.Volume) string {
	t.Helper()
	h := sha256.New()
	buf := make([]byte, 1<<20+lsmt.SectorSize)
	for off := int64(0); off < v.Size(); {
		n, err := v.ReadAt(t.Context(), buf[:min(int64(len(buf)), v.Size()-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("read at %d: %v", off, err)
		}
		h.Write(buf[:n])
		off += int64(n)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// listing renders an index as the golden listings do.
func listing(mappings iter.Seq[lsmt.Mapping]) string {
	var b strings.Builder
	n := 0
	for m := range mappings {
		zeroed := 0
		if m.Zeroed {
			zeroed = 1
		}
		fmt.Fprintf(&b, "%d +%d -> m%d zeroed=%d tag=%d\n", m.LBA, m.Sectors, m.Source, zeroed, m.Tag)
		n++
	}
	return fmt.Sprintf("n=%d\n%s", n, b.String())
}

func TestGoldenVolumes(t *testing.T) {
	read, volume := goldenFiles(t, "rw/a.sealed", "rw/a.commit", "blk/*.lsmt", "raw/*")
	for _, tc := range []struct {
		name   string
		layers []string
	}{
		{"sealed in place", []string{"rw/a.sealed"}},
		{"committed", []string{"rw/a.commit"}},
		{"one layer", []string{"blk/l0.lsmt"}},
		{"two layers", []string{"blk/l0.lsmt", "blk/l1.lsmt"}},
		{"three layers", []string{"blk/l0.lsmt", "blk/l1.lsmt", "blk/l2.lsmt"}},
		{"empty ext4", []string{"raw/mkfs.lsmt"}},
		{"ext4 with files", []string{"raw/l0.lsmt"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var data [][]byte
			for _, name := range tc.layers {
				data = append(data, read(name))
			}
			s := stackOf(t, data...)
			if got, want := volumeSum(t, s), volume[tc.layers[len(tc.layers)-1]]; got != want {
				t.Errorf("volume is %s, want %s", got, want)
			}
		})
	}
}

func TestGoldenIndexes(t *testing.T) {
	read, _ := goldenFiles(t, "rw/*", "blk/*")
	for _, tc := range []struct {
		listing  string
		mappings iter.Seq[lsmt.Mapping]
	}{
		{"rw/a.sealed.index.txt", openLayer(t, read("rw/a.sealed")).Mappings()},
		{"rw/a.commit.index.txt", openLayer(t, read("rw/a.commit")).Mappings()},
		{"blk/stack.index.txt", stackOf(t, read("blk/l0.lsmt"), read("blk/l1.lsmt"), read("blk/l2.lsmt")).Mappings()},
	} {
		if diff := cmp.Diff(string(read(tc.listing)), listing(tc.mappings)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.listing, diff)
		}
	}
}

func TestGoldenHeader(t *testing.T) {
	read, _ := goldenFiles(t, "rw/a.commit")
	l := openLayer(t, read("rw/a.commit"))
	want := lsmt.Header{
		Flags:        lsmt.FlagData | lsmt.FlagSealed,
		IndexOffset:  13615104,
		IndexRecords: 256,
		VirtualSize:  64 << 20,
		UUID:         "11111111-1111-1111-1111-111111111111",
		ParentUUID:   "22222222-2222-2222-2222-222222222222",
		UserTag:      "golden tag",
	}
	if diff := cmp.Diff(want, l.Trailer()); diff != "" {
		t.Errorf("trailer (-want +got):\n%s", diff)
	}
	if !lsmt.Detect(read("rw/a.commit")[:24]) || lsmt.Detect(bytes.Repeat([]byte("x"), 512)) {
		t.Error("Detect does not tell a layer from another file")
	}
}
