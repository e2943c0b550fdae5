// SPDX-License-Identifier: Apache-2.0

package tarblob_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// fakeBlob is a Blob over a byte slice that notes what it was asked.
type fakeBlob struct {
	data    []byte
	onDrop  func(off, n int64) // nil: nothing is kept
	ranges  [][2]int64
	readErr error
}

func (f *fakeBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if f.readErr != nil {
		return 0, f.readErr
	}
	return bytes.NewReader(f.data).ReadAt(p, off)
}
func (f *fakeBlob) Size() int64  { return int64(len(f.data)) }
func (f *fakeBlob) Close() error { return nil }

func (f *fakeBlob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	f.ranges = append(f.ranges, [2]int64{off, n})
	return io.NopCloser(bytes.NewReader(f.data[off : off+n])), nil
}

func (f *fakeBlob) Drop(_ context.Context, off, n int64) error {
	if f.onDrop == nil {
		return errors.ErrUnsupported
	}
	f.onDrop(off, n)
	return nil
}

func wrap(t testing.TB, payload []byte) []byte {
	t.Helper()
	b, err := io.ReadAll(tarblob.Wrap(bytes.NewReader(payload), int64(len(payload))))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// entry returns a tar of one entry as archive/tar writes it.
func entry(t testing.TB, h tar.Header, payload []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	h.Size, h.Mode = int64(len(payload)), 0o444
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(payload); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func open(t testing.TB, data []byte) fetcher.Blob {
	t.Helper()
	b, err := tarblob.Open(t.Context(), &fakeBlob{data: data})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readAll(t testing.TB, b fetcher.Blob) []byte {
	t.Helper()
	p, err := io.ReadAll(fetcher.AtContext(t.Context(), b))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWrapWritesWhatTheReferenceDoes(t *testing.T) {
	_, files := need.Golden(t, "zfile/l0.lz4.4.tar", "zfile/l0.lz4.4")
	payload := readFile(t, files["zfile/l0.lz4.4"].Path)
	want := readFile(t, files["zfile/l0.lz4.4.tar"].Path)
	if got := wrap(t, payload); !bytes.Equal(got, want) {
		t.Errorf("%d bytes that differ from the golden file's %d", len(got), len(want))
	}
	if got := readAll(t, open(t, want)); !bytes.Equal(got, payload) {
		t.Errorf("unwrapped %d bytes that differ from the payload's %d", len(got), len(payload))
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpen(t *testing.T) {
	payload := bytes.Repeat([]byte("layer"), 1000)
	tests := map[string][]byte{
		"reference":    wrap(t, payload),
		"ustar":        entry(t, tar.Header{Name: "overlaybd.commit", Format: tar.FormatUSTAR}, payload),
		"gnu":          entry(t, tar.Header{Name: "overlaybd.commit", Format: tar.FormatGNU}, payload),
		"gnu longname": entry(t, tar.Header{Name: strings.Repeat("n", 200), Format: tar.FormatGNU}, payload),
		"long pax":     entry(t, tar.Header{Name: "x", PAXRecords: map[string]string{"OVERLAYBD.c": strings.Repeat("c", 9000)}}, payload),
		"no tar":       payload,
		"short":        payload[:100],
		"cut trailer":  wrap(t, payload)[:1536+len(payload)],
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			want := payload[:min(len(payload), len(data))]
			if got := readAll(t, open(t, data)); !bytes.Equal(got, want) {
				t.Errorf("got %d bytes that are not the %d of the payload", len(got), len(want))
			}
		})
	}
}

func TestWrapSizes(t *testing.T) {
	for _, n := range []int{0, 1, 511, 512, 513, 99_999, 100_000} {
		payload := bytes.Repeat([]byte{0xA5}, n)
		b := wrap(t, payload)
		if got := tarblob.WrappedSize(int64(n)); got != int64(len(b)) {
			t.Errorf("WrappedSize(%d) = %d, wrapped to %d bytes", n, got, len(b))
		}
		r := tar.NewReader(bytes.NewReader(b))
		h, err := r.Next()
		if err != nil || h.Name != "overlaybd.commit" || h.Size != int64(n) || h.Mode&0o777 != 0o644 {
			t.Fatalf("%d bytes: archive/tar sees %+v, %v", n, h, err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%d bytes: archive/tar reads %d bytes, %v", n, len(got), err)
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%d bytes: after the entry: %v", n, err)
		}
	}
}

func TestWrapInPlace(t *testing.T) {
	for _, n := range []int{0, 1, 511, 512, 513, 100_000} {
		payload := bytes.Repeat([]byte{0xA5}, n)
		f, err := os.Create(t.TempDir() + "/blob")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(payload, tarblob.PayloadOffset); err != nil {
			t.Fatal(err)
		}
		if err := tarblob.WrapInPlace(f, int64(n)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readFile(t, f.Name()), wrap(t, payload)) {
			t.Errorf("%d bytes are wrapped differently", n)
		}
	}
}

func TestWrapHoldsThePayloadToItsSize(t *testing.T) {
	tests := map[string]struct {
		payload io.Reader
		size    int64
		want    string
	}{
		"short":    {strings.NewReader("abc"), 4, "1 bytes are missing of 4"},
		"long":     {strings.NewReader("abc"), 2, "longer than the 2 bytes"},
		"not void": {strings.NewReader("abc"), 0, "longer than the 0 bytes"},
		"negative": {strings.NewReader(""), -1, "the -1 bytes"},
		"error":    {io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(errors.New("disk on fire"))), 4, "disk on fire"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := io.ReadAll(tarblob.Wrap(tt.payload, tt.size))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// A payload that returns its last bytes together with io.EOF, or byte by
// byte, wraps the same.
func TestWrapOfAnyReader(t *testing.T) {
	payload := []byte("payload")
	want := wrap(t, payload)
	for name, r := range map[string]io.Reader{
		"EOF with data": iotest.DataErrReader(bytes.NewReader(payload)),
		"one byte":      iotest.OneByteReader(bytes.NewReader(payload)),
	} {
		if got, err := io.ReadAll(tarblob.Wrap(r, int64(len(payload)))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if err := iotest.TestReader(tarblob.Wrap(bytes.NewReader(payload), int64(len(payload))), want); err != nil {
		t.Error(err)
	}
}

func TestHostileHeaders(t *testing.T) {
	wrapped := wrap(t, []byte("payload"))
	edit := func(f func(b []byte)) []byte {
		b := bytes.Clone(wrapped)
		f(b)
		return b
	}
	reseal := func(h []byte) { // sets the checksum right again
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h[:512] {
			sum += int(c)
		}
		copy(h[148:156], []byte{byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
	}
	tests := map[string][]byte{
		"checksum":              edit(func(b []byte) { b[0] ^= 1 }),
		"checksum of the entry": edit(func(b []byte) { b[1024] ^= 1 }),
		"cut in header":         wrapped[:700],
		"cut in payload":        wrapped[:1540],
		"size beyond blob":      edit(func(b []byte) { copy(b[512:], "15 size=999999\n") }),
		"size overflows":        edit(func(b []byte) { copy(b[512:], "13 size=-100\n\x00") }),
		"pax length lies":       edit(func(b []byte) { copy(b[512:], "99 size=7\n") }),
		"pax length is huge":    edit(func(b []byte) { copy(b[512:], "9223372036854775807 size=7\n") }),
		"pax body is huge":      edit(func(b []byte) { copy(b[124:136], "77777777777 "); reseal(b) }),
		"globals without end":   bytes.Repeat(globalHeader(t), 20),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			b, err := tarblob.Open(t.Context(), &fakeBlob{data: data})
			if !errors.Is(err, tarblob.ErrCorrupt) || b != nil {
				t.Errorf("got %v, %v; want ErrCorrupt", b, err)
			}
		})
	}
}

// An ordinary layer is a tar as well, and nothing is wrong with it.
func TestTarsOfOtherThings(t *testing.T) {
	for name, h := range map[string]tar.Header{
		"directory": {Name: "d/", Typeflag: tar.TypeDir},
		"symlink":   {Name: "l", Linkname: "x", Typeflag: tar.TypeSymlink},
		"sparse":    {Name: "s", PAXRecords: map[string]string{"GNX.sparse.size": "4096"}},
	} {
		// archive/tar keeps those who write tars from the GNU. names.
		src := &fakeBlob{data: bytes.ReplaceAll(entry(t, h, nil), []byte("GNX."), []byte("GNU."))}
		src.onDrop = func(int64, int64) { t.Errorf("%s: dropped from the cache", name) }
		_, err := tarblob.Open(t.Context(), src)
		if !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, tarblob.ErrCorrupt) {
			t.Errorf("%s: got %v, want errors.ErrUnsupported", name, err)
		}
	}
}

func globalHeader(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	h := &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "x"}}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestReadErrorIsNoCorruption(t *testing.T) {
	_, err := tarblob.Open(t.Context(), &fakeBlob{data: make([]byte, 1024), readErr: fetcher.ErrTemporary})
	if !errors.Is(err, fetcher.ErrTemporary) || errors.Is(err, tarblob.ErrCorrupt) {
		t.Errorf("got %v, want ErrTemporary", err)
	}
}

func TestDropHealsTheHeader(t *testing.T) {
	good := wrap(t, []byte("payload"))
	src := &fakeBlob{data: bytes.Clone(good)}
	src.data[1024] ^= 0xFF
	src.onDrop = func(off, n int64) { copy(src.data[off:off+n], good[off:off+n]) }
	b, err := tarblob.Open(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, b); string(got) != "payload" {
		t.Errorf("got %q", got)
	}
}

func TestPayloadForwards(t *testing.T) {
	src := &fakeBlob{data: wrap(t, []byte("0123456789"))}
	var dropped [2]int64
	src.onDrop = func(off, n int64) { dropped = [2]int64{off, n} }
	b, err := tarblob.Open(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if err := fetcher.Drop(t.Context(), b, 2, 3); err != nil || dropped != [2]int64{1538, 3} {
		t.Errorf("Drop reached the source as %v, %v", dropped, err)
	}
	if err := fetcher.Drop(t.Context(), b, 4, math.MaxInt64); err != nil || dropped != [2]int64{1540, 6} {
		t.Errorf("a Drop of everything reached the source as %v, %v", dropped, err)
	}
	r, err := fetcher.ReadRange(t.Context(), b, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "234" || len(src.ranges) != 1 {
		t.Errorf("ReadRange gave %q, %v by %d streams", got, err, len(src.ranges))
	}
	if _, err := fetcher.ReadRange(t.Context(), b, 8, 3); err == nil {
		t.Error("ReadRange past the payload succeeded")
	}
}

func TestPayloadReadAt(t *testing.T) {
	b := open(t, wrap(t, []byte("0123456789")))
	tests := []struct {
		off  int64
		n    int
		want string
		err  error
	}{
		{0, 10, "0123456789", nil},
		{8, 2, "89", nil},
		{8, 3, "89", io.EOF},
		{10, 1, "", io.EOF},
		{99, 1, "", io.EOF},
	}
	for _, tt := range tests {
		p := make([]byte, tt.n)
		n, err := b.ReadAt(t.Context(), p, tt.off)
		if string(p[:n]) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("ReadAt(%d bytes, %d) = %q, %v", tt.n, tt.off, p[:n], err)
		}
	}
	if _, err := b.ReadAt(t.Context(), make([]byte, 1), -1); err == nil {
		t.Error("ReadAt at -1 read the header of the tar")
	}
}

// FuzzOpen wants no panic and no payload outside of the blob, and what Wrap
// wrote to be found.
// TestAt: the payload that Open finds from the headers, At finds from the size.
func TestAt(t *testing.T) {
	payload := bytes.Repeat([]byte("payload"), 100)
	for name, data := range map[string][]byte{
		"wrapped":     wrap(t, payload),
		"archive/tar": entry(t, tar.Header{Name: "overlaybd.commit"}, payload),
		"no tar":      payload,
	} {
		src := &fakeBlob{data: data}
		off := int64(bytes.Index(data, payload))
		b, ok := tarblob.At(src, off, int64(len(payload)))
		if !ok || !bytes.Equal(readAll(t, b), payload) {
			t.Errorf("%s: not found at %d", name, off)
		}
		for _, place := range [][2]int64{{off, 512}, {off, 1 << 40}, {off + 512, 700}, {0, 512}} {
			if _, ok := tarblob.At(src, place[0], place[1]); ok {
				t.Errorf("%s: %d bytes at %d taken for a payload", name, place[1], place[0])
			}
		}
	}
	two := append(wrap(t, payload)[:1536+1024], wrap(t, payload)...)
	if _, ok := tarblob.At(&fakeBlob{data: two}, 2560+1536, 700); ok {
		t.Error("the second entry taken for the payload")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("payload"))
	f.Add(wrap(f, []byte("payload")))
	f.Add(entry(f, tar.Header{Name: "overlaybd.commit", Format: tar.FormatUSTAR}, []byte("payload")))
	f.Add(entry(f, tar.Header{Name: strings.Repeat("n", 200), Format: tar.FormatGNU}, []byte("payload")))
	f.Add(globalHeader(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := tarblob.Open(t.Context(), &fakeBlob{data: data}); err == nil {
			if got := readAll(t, b); !bytes.Contains(data, got) {
				t.Errorf("%d bytes that are not in the blob", len(got))
			}
		}
		if got := readAll(t, open(t, wrap(t, data))); !bytes.Equal(got, data) {
			t.Errorf("%d bytes wrapped, %d unwrapped", len(data), len(got))
		}
	})
}
