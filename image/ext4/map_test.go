// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// A targeted volume copies what is mapped from its target, so that it can be
// read.
type targeted struct {
	fileVolume
	target []byte
}

var _ vfs.ContentMapper = (*targeted)(nil)

// append adds data to the target, as a tar would, and returns where it is.
func (v *targeted) append(data []byte) (at int64) {
	at = int64(len(v.target))
	v.target = append(v.target, data...)
	v.target = append(v.target, make([]byte, -len(data)&511)...)
	return at
}

func (v *targeted) MapContent(ctx context.Context, off, n, at int64) error {
	if (off|n|at)%512 != 0 || at+n > int64(len(v.target)) {
		return fmt.Errorf("map %d bytes at %d from %d: %w", n, off, at, syscall.EINVAL)
	}
	_, err := v.WriteAt(ctx, v.target[at:at+n], off)
	return err
}

func (v *targeted) Discard(ctx context.Context, off, n int64) error {
	if (off|n)%512 != 0 {
		return fmt.Errorf("discard %d bytes at %d: %w", n, off, syscall.EINVAL)
	}
	_, err := v.WriteAt(ctx, make([]byte, n), off)
	return err
}

// mapFile makes a file that is mapped whole.
func mapFile(t testing.TB, f *ext4.FS, name string, at, n int64) vfs.Ino {
	t.Helper()
	ino := must(f.Create(t.Context(), ext4.RootIno, name, attr(syscall.S_IFREG|0o644)))
	w := must(f.Writer(t.Context(), ino, n))
	if err := errors.Join(w.Map(at, n), w.Close()); err != nil {
		t.Fatal(err)
	}
	return ino
}

// TestMapOverOldContent: blocks that were another file's show no more of it
// than the file is long, not even behind its end, where mmap looks.
func TestMapOverOldContent(t *testing.T) {
	for _, n := range []int{1, 511, 512, 513, 4095, 4096, 4097, 9000, 1 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			v := &targeted{fileVolume: newFile(t, 64<<20)}
			f := format(t, v)
			writeFile(t, f, ext4.RootIno, "old", bytes.Repeat([]byte{0xee}, 2<<20))
			flush(t, f)
			if err := f.Remove(t.Context(), ext4.RootIno, "old"); err != nil {
				t.Fatal(err)
			}
			flush(t, f)
			f = open(t, v)
			v.append([]byte("what comes first"))
			want := pattern(3, n)
			ino := mapFile(t, f, "new", v.append(want), int64(n))
			flush(t, f)
			fsck(t, v.fileVolume)
			if got := readFile(t, open(t, v), ino); !bytes.Equal(got, want) {
				t.Error("the file reads differently")
			}
			r := must(ext4.NewReader(t.Context(), v))
			all := must(r.Extents(t.Context(), ino, 0, int64(n)))
			last := all[len(all)-1]
			block := make([]byte, 4096)
			must(v.ReadAt(t.Context(), block, last.Off+last.Len-4096))
			if end := (n-1)%4096 + 1; !bytes.Equal(block, append(want[n-end:], make([]byte, 4096-end)...)) {
				t.Errorf("the last block ends in %x", block[4090:])
			}
		})
	}
}

// TestMapAfterWrites: content that waits to be written does not come over what
// is mapped to the block that it was for.
func TestMapAfterWrites(t *testing.T) {
	v := &targeted{fileVolume: newFile(t, 1<<20)}
	f := format(t, v)
	ino := must(f.Create(t.Context(), ext4.RootIno, "stored", attr(syscall.S_IFREG)))
	w := must(f.Writer(t.Context(), ino, 0))
	for {
		if _, err := w.Write(bytes.Repeat([]byte{0xee}, 4096)); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Remove(t.Context(), ext4.RootIno, "stored")); err != nil {
		t.Fatal(err)
	}
	want := pattern(1, 600_000)
	ino = mapFile(t, f, "mapped", v.append(want), int64(len(want)))
	if got := readFile(t, f, ino); !bytes.Equal(got, want) {
		t.Error("the file reads differently")
	}
}

// A mapLog notes what is mapped, and does nothing.
type mapLog struct {
	fileVolume
	mapped []mapping
}

type mapping struct{ off, n, at int64 }

func (v *mapLog) MapContent(_ context.Context, off, n, at int64) error {
	if n > 0 {
		v.mapped = append(v.mapped, mapping{off, n, at})
	}
	return nil
}

func (v *mapLog) Discard(context.Context, int64, int64) error { return nil }

// TestMapHugeFile: a file of many extents is mapped to its end.
func TestMapHugeFile(t *testing.T) {
	const size, at = 10<<30 + 1000, 7 << 20
	v := &mapLog{fileVolume: newFile(t, 12<<30)}
	f := format(t, v)
	ino := mapFile(t, f, "huge", at, size)
	flush(t, f)
	fsck(t, v.fileVolume)
	r := must(ext4.NewReader(t.Context(), v))
	next, extents := int64(0), must(r.Extents(t.Context(), ino, 0, size))
	for _, m := range v.mapped {
		if m.at != at+next || m.off != extents[0].Off {
			t.Fatalf("byte %d is at %d of the target and %d of the disk, want %d and %d", next, m.at, m.off, at+next, extents[0].Off)
		}
		next += m.n
		if extents[0].Off, extents[0].Len = extents[0].Off+m.n, extents[0].Len-m.n; extents[0].Len == 0 {
			extents = extents[1:]
		}
	}
	if next != 10<<30+1024 || len(extents) > 1 {
		t.Errorf("%d bytes are mapped, %d extents are not", next, len(extents))
	}
}

// TestMapThenWrite: whole blocks are mapped, the rest is stored.
func TestMapThenWrite(t *testing.T) {
	v := &targeted{fileVolume: newFile(t, 64<<20)}
	f := format(t, v)
	want := pattern(5, 20_000)
	ino := must(f.Create(t.Context(), ext4.RootIno, "file", attr(syscall.S_IFREG|0o644)))
	w := must(f.Writer(t.Context(), ino, 20_000))
	_, err := w.Write(want[:4096])
	err = errors.Join(err, w.Map(v.append(want[4096:16384]), 12288))
	must(w.Write(want[16384:]))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	flush(t, f)
	fsck(t, v.fileVolume)
	if got := readFile(t, open(t, v), ino); !bytes.Equal(got, want) {
		t.Error("the file reads differently")
	}
}

// TestMapErrors: what cannot be mapped is refused, and takes no block.
func TestMapErrors(t *testing.T) {
	v := &targeted{fileVolume: newFile(t, 8<<20)}
	at := v.append(pattern(1, 4096))
	f := format(t, v)
	begin := func(f *ext4.FS, data []byte) vfs.FileWriter {
		name := fmt.Sprint(rand.Uint64())
		w := must(f.Writer(t.Context(), must(f.Create(t.Context(), ext4.RootIno, name, attr(syscall.S_IFREG))), 0))
		must(w.Write(data))
		return w
	}
	plain := format(t, backendtest.NewMemVolume(8<<20))
	small := format(t, &mapLog{fileVolume: newFile(t, 8<<20)})
	mapped := begin(f, nil)
	if err := mapped.Map(at, 700); err != nil {
		t.Fatal(err)
	}
	_, written := mapped.Write([]byte{1})
	closed := begin(f, nil)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		got  error
		want error
	}{
		{"no target", begin(plain, nil).Map(0, 512), errors.ErrUnsupported},
		{"in a block", begin(f, []byte("x")).Map(at, 512), errors.ErrUnsupported},
		{"no sector", begin(f, nil).Map(at+1, 512), syscall.EINVAL},
		{"negative", begin(f, nil).Map(at, -1), syscall.EINVAL},
		{"before the target", begin(f, nil).Map(-512, 512), syscall.EINVAL},
		{"endless", begin(f, nil).Map(at, 1<<62), syscall.EINVAL},
		{"larger than the disk", begin(small, nil).Map(at, 1<<40), syscall.ENOSPC},
		{"written behind", written, syscall.EINVAL},
		{"skipped behind", mapped.Skip(1), syscall.EINVAL},
		{"mapped behind", mapped.Map(at, 1), syscall.EINVAL},
		{"closed", closed.Map(at, 1), fs.ErrClosed},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, c.got, c.want)
		}
	}
}
