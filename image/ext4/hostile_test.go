// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// memory is a small Writer that is cheap to copy.
type memory []byte

var _ backend.Writer = memory(nil)

var errRange = errors.New("outside the device")

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m)) || len(p) > len(m)-int(off) || (off|int64(len(p)))%backend.SectorSize != 0 {
		return 0, errRange
	}
	return copy(p, m[off:]), nil
}

func (m memory) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m)) || len(p) > len(m)-int(off) || (off|int64(len(p)))%backend.SectorSize != 0 {
		return 0, errRange
	}
	return copy(m[off:], p), nil
}

func (m memory) Size() int64                                 { return int64(len(m)) }
func (m memory) Discard(context.Context, int64, int64) error { return errors.ErrUnsupported }
func (m memory) Sync(context.Context) error                  { return nil }
func (m memory) Close() error                                { return nil }

// smallImage returns a file system of 2 MiB with an index, a tree of extents,
// an attribute block and files of every kind.
func smallImage(t testing.TB) memory {
	t.Helper()
	m := make(memory, 2<<20)
	p := must(newPair(t.Context(), format(t, m)))
	everything(t, p)
	dir := must(p.fs.Create(t.Context(), ext4.RootIno, "many", attr(syscall.S_IFDIR|0o755)))
	file := must(p.fs.Lookup(t.Context(), ext4.RootIno, "file"))
	setContent(t, p.fs, file, make([]byte, 300_000)) // only metadata is to be damaged
	for i := range 60 {
		if err := p.fs.Link(t.Context(), dir, fmt.Sprintf("name %d %s", i, strings.Repeat("x", 80)), file); err != nil {
			t.Fatal(err)
		}
	}
	var patches []patch
	for i := range 20 {
		patches = append(patches, patch{int64(i) * 8192, []byte{1}})
	}
	writePatches(t, p.fs, "holes", 20*8192, patches)
	flush(t, p.fs)
	return m
}

// metadataBytes returns where in m metadata is, padding left out. All of it is
// in the first 1 MiB and a bit: the blocks set aside for it follow the inodes.
func metadataBytes(m memory) (at []uint32) {
	const end = 1<<20 + 64<<10
	for i := 1024; i < end; i++ {
		empty := m[i] == 0 || m[i] == m[i-1]
		if !empty || i%4096 < 64 && i < 48*4096 {
			at = append(at, uint32(i))
		}
	}
	return at
}

// use does to f all that can be done. Errors are welcome.
func use(ctx context.Context, f *ext4.FS) error {
	u := &user{ctx: ctx, f: f, seen: map[vfs.Ino]bool{}}
	u.walk(ext4.RootIno)
	return errors.Join(u.err, f.Sync(ctx))
}

type user struct {
	ctx  context.Context
	f    *ext4.FS
	seen map[vfs.Ino]bool
	err  error
}

// note keeps the first report of damage. Other errors, such as that of a full
// device, may come from a sound file system.
func (u *user) note(err error) {
	if u.err == nil && errors.Is(err, ext4.ErrCorrupt) {
		u.err = err
	}
}

func (u *user) walk(dir vfs.Ino) {
	if u.seen[dir] {
		return
	}
	u.seen[dir] = true
	var entries []vfs.DirEntry
	for e, err := range u.f.ReadDir(u.ctx, dir) {
		u.note(err)
		entries = append(entries, e)
	}
	for i, e := range entries {
		u.visit(e.Ino)
		_, err := u.f.Lookup(u.ctx, dir, e.Name)
		u.note(err)
		u.walk(e.Ino)
		if i%16 == 0 {
			u.add(dir, fmt.Sprintf("new %d %s", i, strings.Repeat("y", 50)), e.Ino)
		}
		if i%3 > 0 {
			u.note(u.f.Remove(u.ctx, dir, e.Name))
		}
	}
}

// visit reads and changes a file.
func (u *user) visit(ino vfs.Ino) {
	st, err := u.f.Stat(u.ctx, ino)
	u.note(err)
	m, err := u.f.Xattrs(u.ctx, ino)
	u.note(err)
	if u.seen[ino] {
		return
	}
	_, _ = u.f.Readlink(u.ctx, ino)
	for _, off := range []int64{0, 5000, st.Size / 2, st.Size - 10} {
		_, _ = u.f.ReadAt(u.ctx, ino, make([]byte, 9000), off)
	}
	u.note(u.f.SetAttr(u.ctx, ino, st.Attr))
	if m != nil {
		m["user.added"] = pattern(1, 600)
		_ = u.f.SetXattrs(u.ctx, ino, m)
	}
}

// add makes files in dir.
func (u *user) add(dir vfs.Ino, name string, other vfs.Ino) {
	_ = u.f.Link(u.ctx, dir, name+" link", other)
	_, _ = u.f.Symlink(u.ctx, dir, name+" symlink", strings.Repeat("t", 70), attr(0))
	ino, err := u.f.Create(u.ctx, dir, name, attr(syscall.S_IFREG))
	if err != nil {
		return
	}
	w, err := u.f.Writer(u.ctx, ino, 10_000)
	if err != nil {
		return
	}
	_, _ = w.Write(pattern(2, 5000))
	_ = w.Close()
}

// damage changes m: every 4 bytes of how are a place and a value.
func damage(m memory, at []uint32, how []byte) {
	for ; len(how) >= 4; how = how[4:] {
		v := binary.LittleEndian.Uint32(how)
		m[at[int(v>>8)%len(at)]] = byte(v)
	}
}

// FuzzDamaged uses a damaged file system. It may fail; it may not panic or go
// on for ever.
func FuzzDamaged(f *testing.F) {
	image := smallImage(f)
	at := metadataBytes(image)
	f.Add([]byte{})
	f.Add([]byte{0xff, 0x10, 0, 0, 0x20, 0x10, 1, 0})
	f.Add([]byte{0, 0x30, 2, 0, 1, 0x31, 2, 0, 7, 7, 7, 7})
	m := make(memory, len(image))
	f.Fuzz(func(t *testing.T, how []byte) {
		copy(m, image)
		damage(m, at, how)
		for range 2 {
			f, err := ext4.Open(t.Context(), m)
			if err != nil {
				return
			}
			_ = use(t.Context(), f)
		}
	})
}

func TestUseOfSoundImage(t *testing.T) {
	if err := use(t.Context(), open(t, smallImage(t))); err != nil {
		t.Error(err)
	}
}

// TestEveryByteDamaged sets every byte of metadata to something else, one at a
// time.
func TestEveryByteDamaged(t *testing.T) {
	image := smallImage(t)
	at := metadataBytes(image)
	m := make(memory, len(image))
	found := 0
	for i := 0; i < len(at); i += 1 + len(at)/(1000/slow) {
		copy(m, image)
		m[at[i]] ^= 0xff
		f, err := ext4.Open(t.Context(), m)
		if err == nil {
			err = use(t.Context(), f)
		}
		if errors.Is(err, ext4.ErrCorrupt) {
			found++
		}
	}
	if found < 10 {
		t.Errorf("damage was found %d times, far too few", found)
	}
}

func TestRefused(t *testing.T) {
	image := smallImage(t)
	const super = 1024
	for _, c := range []struct {
		name string
		off  int
		bits byte
		want error
		text string
	}{
		{"magic", 0x38, 0xff, ext4.ErrCorrupt, "s_magic"},
		{"needs recovery", 0x60, 0x04, ext4.ErrUnclean, "journal"},
		{"mounted", 0x3a, 0x01, ext4.ErrUnclean, "state"},
		{"orphans", 0xe8, 0x0c, ext4.ErrUnclean, "orphan"},
		{"metadata_csum", 0x65, 0x04, errors.ErrUnsupported, "metadata_csum"},
		{"inline_data", 0x61, 0x80, errors.ErrUnsupported, "inline_data"},
		{"future", 0x63, 0x40, errors.ErrUnsupported, "0x40000000"},
		{"no extents", 0x60, 0x40, errors.ErrUnsupported, "extents"},
		{"block size", 0x18, 0x04, errors.ErrUnsupported, "block size"},
		{"blocks", 0x07, 0x80, ext4.ErrCorrupt, "s_blocks_count"},
		{"group size", 0x22, 0x10, ext4.ErrCorrupt, "s_blocks_per_group"},
		{"inodes", 0x00, 0x10, ext4.ErrCorrupt, "s_inodes_count"},
		{"block bitmap", 4096 - super, 0x01, ext4.ErrCorrupt, "overlap"},
	} {
		m := append(memory(nil), image...)
		m[super+c.off] ^= c.bits
		_, err := ext4.Open(t.Context(), m)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %v that says %q", c.name, err, c.want, c.text)
		}
	}
}

func TestDeviceErrorIsReported(t *testing.T) {
	f := open(t, &failing{memory: smallImage(t), left: 5})
	var err error
	for e, err2 := range f.ReadDir(t.Context(), ext4.RootIno) {
		if err = err2; err == nil {
			_, err = f.Xattrs(t.Context(), e.Ino)
		}
		if err != nil {
			break
		}
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want the device's error", err)
	}
}

// failing fails to read after a number of reads.
type failing struct {
	memory
	left int
}

func (v *failing) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if v.left--; v.left < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return v.memory.ReadAt(ctx, p, off)
}
