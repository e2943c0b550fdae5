// SPDX-License-Identifier: Apache-2.0

package zfile_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/overlaybd-go/overlaybd/image/zfile"
)

func TestWriteReadIdentity(t *testing.T) {
	for _, a := range algorithms {
		for bs := 4 << 10; bs <= 64<<10; bs *= 2 {
			for _, n := range []int{0, 1, bs - 1, bs, bs + 1, 600_001} {
				t.Run(fmt.Sprint(a, " ", bs, " ", n), func(t *testing.T) {
					raw := mixed(n)
					one := compress(t, raw, zfile.Options{Algorithm: a, BlockSize: bs, Workers: 1})
					if got := readAll(t, open(t, memBlob(one))); !bytes.Equal(got, raw) {
						t.Errorf("read %d other bytes", len(got))
					}
					for _, workers := range []int{2, 8} {
						if got := compress(t, raw, zfile.Options{Algorithm: a, BlockSize: bs, Workers: workers}); !bytes.Equal(got, one) {
							t.Errorf("%d workers wrote other bytes than one", workers)
						}
					}
				})
			}
		}
	}
}

// TestBestLevel: more work makes fewer bytes, the same ones whoever works.
func TestBestLevel(t *testing.T) {
	raw := programText(t)
	for _, a := range algorithms {
		for _, bs := range []int{4 << 10, 64 << 10} {
			normal := compress(t, raw, zfile.Options{Algorithm: a, BlockSize: bs})
			best := compress(t, raw, zfile.Options{Algorithm: a, BlockSize: bs, Level: zfile.Best, Workers: 1})
			if len(best) >= len(normal) {
				t.Errorf("%s, %d: %d bytes by the best level, %d by the normal one", a, bs, len(best), len(normal))
			}
			if got := readAll(t, open(t, memBlob(best))); !bytes.Equal(got, raw) {
				t.Errorf("%s, %d: read %d other bytes", a, bs, len(got))
			}
			if got := compress(t, raw, zfile.Options{Algorithm: a, BlockSize: bs, Level: zfile.Best, Workers: 8}); !bytes.Equal(got, best) {
				t.Errorf("%s, %d: 8 workers wrote other bytes than one", a, bs)
			}
		}
	}
}

// The sizes of the writes leave no trace.
func TestWriteInPieces(t *testing.T) {
	raw := mixed(700_000)
	want := compress(t, raw, zfile.Options{})
	for _, piece := range []int{1000, 4096, 262_144, 262_145, 600_000} {
		var out bytes.Buffer
		w, err := zfile.NewWriter(&out, zfile.Options{Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		for rest := raw; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
			if n, err := w.Write(rest[:min(piece, len(rest))]); err != nil || n != min(piece, len(rest)) {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		if err := w.Close(); err != nil || !bytes.Equal(out.Bytes(), want) {
			t.Errorf("pieces of %d bytes: %v, or other bytes", piece, err)
		}
	}
}

// failingWriter takes room bytes and then fails.
type failingWriter struct{ room int }

var errFull = errors.New("no space left")

func (f *failingWriter) Write(p []byte) (int, error) {
	if len(p) > f.room {
		return f.room, errFull
	}
	f.room -= len(p)
	return len(p), nil
}

// Wherever the underlying writer fails, the caller hears of it from then on
// and no goroutine stays: synctest fails on one that does.
func TestWriteErrorEndsTheWriter(t *testing.T) {
	raw := mixed(3 << 20)
	size := len(compress(t, raw, zfile.Options{}))
	for _, room := range []int{0, 511, 512, 100_000, size / 2, size - 1000, size - 512, size - 1} {
		synctest.Test(t, func(t *testing.T) {
			w, err := zfile.NewWriter(&failingWriter{room}, zfile.Options{Workers: 4})
			if err == nil {
				_, err = w.Write(raw)
				if cerr := w.Close(); err == nil {
					err = cerr
				} else if !errors.Is(cerr, errFull) {
					t.Errorf("room for %d: Close after a failed Write: %v", room, cerr)
				}
			}
			if !errors.Is(err, errFull) || !strings.Contains(err.Error(), "at byte") {
				t.Errorf("room for %d of %d bytes: got %v", room, size, err)
			}
		})
	}
}

// A Writer that is given up without Close leaves nothing behind either.
func TestAbandonedWriterLeavesNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, err := zfile.NewWriter(io.Discard, zfile.Options{Workers: 4})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(mixed(1 << 20)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWriteAfterClose(t *testing.T) {
	var out bytes.Buffer
	w, err := zfile.NewWriter(&out, zfile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	n := out.Len()
	if _, err := w.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Write after Close: %v, want fs.ErrClosed", err)
	}
	if err := w.Close(); !errors.Is(err, fs.ErrClosed) || out.Len() != n {
		t.Errorf("second Close: %v after %d more bytes", err, out.Len()-n)
	}
}

// A block that the reference cannot read is refused, not written.
func TestIncompressible64KiBBlocks(t *testing.T) {
	raw := make([]byte, 300_000)
	_, _ = rand.Read(raw)
	for _, a := range algorithms {
		w, err := zfile.NewWriter(io.Discard, zfile.Options{Algorithm: a, BlockSize: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		_, werr := w.Write(raw)
		if err := errors.Join(werr, w.Close()); !errors.Is(err, zfile.ErrBlockTooLong) || !strings.Contains(err.Error(), "at byte 0") {
			t.Errorf("%s: got %v, want ErrBlockTooLong with the offset", a, err)
		}
		z := compress(t, raw, zfile.Options{Algorithm: a, BlockSize: 32 << 10})
		if got := readAll(t, open(t, memBlob(z))); !bytes.Equal(got, raw) {
			t.Errorf("%s: 32 KiB blocks read other bytes", a)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, opts := range []zfile.Options{
		{BlockSize: 1}, {BlockSize: 2048}, {BlockSize: 5000}, {BlockSize: 128 << 10}, {BlockSize: -4096}, {Algorithm: 3},
	} {
		if _, err := zfile.NewWriter(io.Discard, opts); err == nil {
			t.Errorf("NewWriter took %+v", opts)
		}
	}
}

func TestParseAlgorithm(t *testing.T) {
	for _, a := range algorithms {
		if got, err := zfile.ParseAlgorithm(a.String()); got != a || err != nil {
			t.Errorf("ParseAlgorithm(%q) = %v, %v", a.String(), got, err)
		}
	}
	if _, err := zfile.ParseAlgorithm("lzo"); err == nil || !strings.Contains(err.Error(), "use lz4 or zstd") {
		t.Errorf("lzo: %v", err)
	}
}
