// SPDX-License-Identifier: Apache-2.0

package tarblob_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func dump(tb testing.TB, archive []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	if err := tarblob.WriteHeaders(&out, bytes.NewReader(archive)); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// TestGoldenHeaders writes what the reference writes.
func TestGoldenHeaders(t *testing.T) {
	dir, files := need.Golden(t, "tars/l0.tar", "tarhdr/*")
	archive, err := os.ReadFile(filepath.Join(dir, "tars/l0.tar"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(files["tarhdr/l0.tarhdr"].Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := dump(t, archive); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes that differ from the reference's %d", len(got), len(want))
	}
	wantSame(t, archive, want)
}

// wantSame expects a dump to say of each file what the archive says.
func wantSame(t *testing.T, archive, dump []byte) {
	t.Helper()
	tr, hr := tar.NewReader(bytes.NewReader(archive)), tarblob.NewHeaderReader(bytes.NewReader(dump))
	for {
		want, err := tr.Next()
		for err == nil && want.Typeflag == tar.TypeXGlobalHeader {
			want, err = tr.Next()
		}
		got, off, gotErr := hr.Next()
		if errors.Is(err, io.EOF) {
			if !errors.Is(gotErr, io.EOF) {
				t.Errorf("got %v, %v at the end", got, gotErr)
			}
			return
		}
		if err != nil || gotErr != nil {
			t.Fatalf("got %v, %v", err, gotErr)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("header of %s (-want +got):\n%s", want.Name, d)
		}
		if (off < 0) == (want.Typeflag == tar.TypeReg) {
			t.Errorf("%s, of type %q, has its content at %d", want.Name, want.Typeflag, off)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if off >= 0 && !bytes.Equal(content, archive[off:off+want.Size]) {
			t.Errorf("the content of %s is not at byte %d", want.Name, off)
		}
	}
}

// files makes a tar of files of all kinds.
func files(tb testing.TB, format tar.Format) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	long := strings.Repeat("long/", 60)
	if format == tar.FormatUSTAR {
		long = "short"
	}
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "empty", Mode: 0o644},
		{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o4755, Size: 1000, Uid: 1, Gid: 2, Uname: "u", Gname: "g"},
		{Typeflag: tar.TypeReg, Name: long + "file", Mode: 0o644, Size: 512},
		{Typeflag: tar.TypeLink, Name: "hard", Linkname: "dir/file"},
		{Typeflag: tar.TypeSymlink, Name: "soft", Linkname: long + "file"},
		{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeFifo, Name: "fifo"},
		{Typeflag: tar.TypeReg, Name: "last", Size: 1},
	} {
		h.Format = format
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func TestHeaders(t *testing.T) {
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		t.Run(format.String(), func(t *testing.T) {
			archive := files(t, format)
			d := dump(t, archive)
			wantSame(t, archive, d)
			end := len(archive) - 1024 - 511 // of the last byte of content
			if got := dump(t, archive[:end]); !bytes.Equal(got, d) {
				t.Error("an archive without the padding at its end has another dump")
			}
		})
	}
}

// TestHugeFile: sizes that octal digits cannot tell.
func TestHugeFile(t *testing.T) {
	const size = 9 << 30
	for _, format := range []tar.Format{tar.FormatPAX, tar.FormatGNU} {
		var head bytes.Buffer
		w := tar.NewWriter(&head)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Size: size, Format: format}); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := tarblob.WriteHeaders(&out, &head)
		if !errors.Is(err, io.ErrUnexpectedEOF) || out.Len() == 0 {
			t.Errorf("%s: got %d bytes, %v; want the headers and an early end", format, out.Len(), err)
		}
		wantOff := int64(out.Len())
		h, off, err := tarblob.NewHeaderReader(&out).Next()
		if err != nil || h.Size != size || off != wantOff {
			t.Errorf("%s: got %+v at %d, %v", format, h, off, err)
		}
	}
}

func TestBadHeaders(t *testing.T) {
	archive := files(t, tar.FormatPAX)
	good := dump(t, archive)
	at := func(b []byte, name string) int { return bytes.Index(b, append([]byte(name), 0)) }
	set := func(off int, with ...byte) func([]byte) []byte {
		return func(b []byte) []byte {
			copy(b[off:], with)
			return b
		}
	}
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		dump   bool
		class  error
	}{
		"checksum":            {set(at(archive, "empty")+5, 'x'), false, tarblob.ErrCorrupt},
		"cut header":          {func(b []byte) []byte { return b[:700] }, false, io.ErrUnexpectedEOF},
		"cut body":            {func(b []byte) []byte { return b[:at(b, "dir/file")+600] }, false, io.ErrUnexpectedEOF},
		"zeros before end":    {func(b []byte) []byte { return append(make([]byte, 512), b...) }, false, tarblob.ErrCorrupt},
		"body elsewhere":      {set(at(good, "dir/file")+329, 0, 0x77), true, tarblob.ErrCorrupt},
		"body far away":       {set(at(good, "last")+329+7, 0x7f), true, tarblob.ErrCorrupt},
		"another size":        {set(at(good, "dir/file")+124, '7'), true, tarblob.ErrCorrupt},
		"size is no number":   {set(at(good, "last")+124, []byte("98765")...), true, tarblob.ErrCorrupt},
		"headers of no file":  {func(b []byte) []byte { return b[:bytes.Index(b, []byte("PaxHeaders"))/512*512+1024] }, true, tarblob.ErrCorrupt},
		"dump cut in headers": {func(b []byte) []byte { return b[:bytes.Index(b, []byte("PaxHeaders"))/512*512+512] }, true, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			if tc.dump {
				_, err = readDump(tc.change(bytes.Clone(good)))
			} else {
				err = tarblob.WriteHeaders(io.Discard, bytes.NewReader(tc.change(bytes.Clone(archive))))
			}
			if !errors.Is(err, tc.class) {
				t.Errorf("got %v, want %v", err, tc.class)
			}
		})
	}
}

// readDump returns a line for each file of a dump.
func readDump(dump []byte) (lines []string, err error) {
	r := tarblob.NewHeaderReader(bytes.NewReader(dump))
	for {
		h, off, err := r.Next()
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return lines, err
		}
		lines = append(lines, fmt.Sprint(h.Name, h.Size, off))
	}
}

// TestSparseHeaders: a sparse file is skipped as it is stored, and not taken for
// its content.
func TestSparseHeaders(t *testing.T) {
	dir, _ := need.Golden(t, "tars/sparse-*")
	for _, name := range []string{"sparse-gnu.tar", "sparse-pax1.tar"} {
		archive, err := os.ReadFile(filepath.Join(dir, "tars", name))
		if err != nil {
			t.Fatal(err)
		}
		if lines, err := readDump(dump(t, archive)); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: got %q, %v; want that it is not supported", name, lines, err)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		archive := files(f, format)
		d := dump(f, archive)
		f.Add(archive[:2048]) // small ones, of which there can be many
		f.Add(d[:1024])
		for off := 0; off+2048 <= len(d); off += 512 {
			if d[off+156] == tar.TypeXHeader || d[off+156] == tar.TypeGNULongName {
				f.Add(d[off : off+2048])
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = readDump(b)
		var out bytes.Buffer
		if tarblob.WriteHeaders(&out, bytes.NewReader(b)) != nil {
			return
		}
		lines, err := readDump(out.Bytes())
		if err != nil {
			return // archive/tar may want more of headers than we need
		}
		want := 0
		for tr := tar.NewReader(bytes.NewReader(b)); ; {
			h, err := tr.Next()
			if err != nil {
				break
			}
			if h.Typeflag != tar.TypeXGlobalHeader {
				want++
			}
		}
		if len(lines) < want {
			t.Errorf("got %d files of a tar of %d", len(lines), want)
		}
	})
}
