// SPDX-License-Identifier: Apache-2.0

package zstdidx_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/zstdidx"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// source is text as layers have it: the project's own.
var source = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	_ = fs.WalkDir(os.DirFS("../.."), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".go" && b.Len() < 400_000 {
			p, _ := os.ReadFile(filepath.Join("../..", path))
			b.Write(p)
		}
		return nil
	})
	return b.Bytes()
})

// contents are what is compressed.
func contents() map[string][]byte {
	random := fetchertest.Content(200_001, 7)
	// Parts that repeat from afar, in small pieces, among what is new.
	far := bytes.Clone(random[:150_000])
	rnd := rand.New(rand.NewPCG(1, 2))
	for len(far) < 350_000 {
		at, n := rnd.IntN(len(far)-300), rnd.IntN(300)
		far = append(far, far[at:at+n]...)
		far = append(far, random[rnd.IntN(1000):][:rnd.IntN(60)]...)
	}
	return map[string][]byte{
		"empty":  nil,
		"byte":   {42},
		"source": source(),
		"random": random,
		"zeros":  make([]byte, 200_000),
		"far":    far,
	}
}

// A maker compresses.
type maker struct {
	name string
	make func(t testing.TB, p []byte) []byte
}

// makers are all that make zstd streams here.
func makers() []maker {
	var all []maker
	for level := zstd.SpeedFastest; level <= zstd.SpeedBestCompression; level++ {
		all = append(
			all,
			maker{"go stream " + level.String(), goStream(zstd.WithEncoderLevel(level))},
			maker{"go at once " + level.String(), goAtOnce(zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(false))},
		)
	}
	all = append(
		all,
		maker{"go with flushes", goFlushing(33_333)},
		maker{"go single segment", goAtOnce(zstd.WithSingleSegment(true))},
		maker{"go small window", goStream(zstd.WithWindowSize(64<<10), zstd.WithEncoderLevel(zstd.SpeedBestCompression))},
		maker{"go without entropy", goAtOnce(zstd.WithNoEntropyCompression(true))},
		maker{"go padded", goAtOnce(zstd.WithEncoderPadding(4096))},
		maker{"frames", framed(goAtOnce())},
		maker{"chunked", chunked},
	)
	if hasProgram() {
		for level := 1; level <= 19; level++ {
			all = append(all, maker{fmt.Sprintf("zstd -%d", level), program(fmt.Sprintf("-%d", level), "--single-thread")})
		}
		all = append(
			all,
			maker{"zstd --no-check", program("--no-check")},
			maker{"zstd --fast", program("--fast=5")},
			maker{"zstd -T2", program("-T2", "-B524288")},
			maker{"zstd --ultra -22 --long", program("--ultra", "-22", "--long=27")},
			maker{"zstd with size", sized},
			maker{"zstd with literals only", program("-3", "--no-compress-literals")},
		)
	}
	return all
}

// TestProgram fails where the corpus lacks what the program zstd makes, and it is
// required.
func TestProgram(t *testing.T) { need.Command(t, "zstd") }

// hasProgram reports whether the program zstd is there.
func hasProgram() bool {
	_, err := exec.LookPath("zstd")
	return err == nil
}

// goStream compresses as buildkit and others do.
func goStream(opts ...zstd.EOption) func(testing.TB, []byte) []byte {
	return goFlushing(1<<30, opts...)
}

// goFlushing ends a block every n bytes.
func goFlushing(n int, opts ...zstd.EOption) func(testing.TB, []byte) []byte {
	return func(t testing.TB, p []byte) []byte {
		t.Helper()
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, opts...)
		if err != nil {
			t.Fatal(err)
		}
		for len(p) > 0 {
			n := min(len(p), n)
			if _, err := w.Write(p[:n]); err != nil {
				t.Fatal(err)
			}
			_ = w.Flush()
			p = p[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
}

// goAtOnce makes one frame of all it gets, by the same encoder every time.
func goAtOnce(opts ...zstd.EOption) func(testing.TB, []byte) []byte {
	w, err := zstd.NewWriter(nil, append(opts, zstd.WithZeroFrames(true), zstd.WithEncoderConcurrency(1))...)
	return func(t testing.TB, p []byte) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return w.EncodeAll(p, nil)
	}
}

// framed makes frames of pieces of all sizes, with empty ones among them.
func framed(encode func(testing.TB, []byte) []byte) func(testing.TB, []byte) []byte {
	return func(t testing.TB, p []byte) []byte {
		t.Helper()
		var b []byte
		for i := 0; len(p) > 0; i++ {
			n := min(len(p), 1+i*i*i%400_000)
			b = append(b, encode(t, p[:n])...)
			b = append(b, encode(t, nil)...)
			p = p[n:]
		}
		return b
	}
}

// chunked makes a frame of each file-sized piece, and frames to be skipped
// before, among and after them, as zstd:chunked has them.
func chunked(t testing.TB, p []byte) []byte {
	t.Helper()
	encode := goAtOnce()
	b := skippable(3, 9)
	for i := 0; len(p) > 0; i++ {
		n := min(len(p), 512+i*7919%60_000)
		b = append(b, encode(t, p[:n])...)
		if i%5 == 0 {
			b = append(b, skippable(i%16, i*i*40%90_000)...)
		}
		p = p[n:]
	}
	return append(b, skippable(0, 200_000)...)
}

func skippable(kind, n int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x184d2a50+uint32(kind))
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	return append(b, fetchertest.Content(n, 3)...)
}

// program returns what the program zstd makes of its input.
func program(args ...string) func(testing.TB, []byte) []byte {
	return func(t testing.TB, p []byte) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "zstd", append([]string{"-q", "-c"}, args...)...)
		cmd.Stdin = bytes.NewReader(p)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("zstd %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
}

// sized compresses a file, whose size zstd notes.
func sized(t testing.TB, p []byte) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "zstd", "-q", "-c", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// small are options that give small contents many spans.
var small = zstdidx.Options{Span: 40_000, MaxSpan: 150_000}

// indexed decompresses z and returns its content and index.
func indexed(t testing.TB, z []byte, opts zstdidx.Options) (content, index []byte) {
	t.Helper()
	r := zstdidx.NewReader(bytes.NewReader(z), opts)
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	n, err := r.WriteIndex(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteIndex = %d, %v; wrote %d", n, err, b.Len())
	}
	return content, b.Bytes()
}

func open(t testing.TB, src fetcher.Blob, index []byte) *zstdidx.Blob {
	t.Helper()
	b, err := zstdidx.Open(t.Context(), src, bytes.NewReader(index), int64(len(index)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// memBlob is a blob in memory.
type memBlob []byte

func (m memBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return bytes.NewReader(m).ReadAt(p, off)
}

func (m memBlob) Size() int64 { return int64(len(m)) }

func (m memBlob) Close() error { return nil }
