// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"context"
	"io"
	"slices"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// smallFile is the size, in bytes, of files that are not looked at before all of
// it is there: no more than one request asks for.
const smallFile = 256 << 10

// What is fetched in vain, in bytes of the volume, to save a request. Where more
// is wanted than can be asked for at once, each request is in the way of another.
const (
	mergeGap = 32 << 10
	busyGap  = 512 << 10
)

// A file is one that a program reads, or that the scout expects it to read.
type file struct {
	s   *scout
	ctx context.Context // of the scout, for ReadAt

	name  string   // its path, "" if it was found by its content
	ino   vfs.Ino  // 0 if it was found by its content
	at    int64    // where it begins on the volume
	size  int64    // 0 if not known
	rpath []string // where else the dynamic linker looks for what it needs

	most int64 // up to which size it is fetched as a whole, 0 for the usual

	program bool // it was started
	needed  bool // a program or another library is linked with it
	own     bool // a program is linked with it
	asked   bool // all that leads to others was asked for
	whole   bool // all of it was
	besides bool // nothing is to be done when it is there
	names   bool // the names in it are
	parts   []vfs.Extent
	missing int // spans that have not arrived
}

var _ io.ReaderAt = (*file)(nil)

// ReadAt reads from the file. One found by its content is taken to lie in one
// piece, as most do.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if f.ino != 0 {
		return f.s.tree.fs.ReadAt(f.ctx, f.ino, p, off)
	}
	const mask = backend.SectorSize - 1
	from := (f.at + off) &^ mask
	to := min((f.at+off+int64(len(p))+mask)&^mask, f.s.vol.Size())
	if off < 0 || from < 0 || to <= from {
		return 0, io.EOF
	}
	b := make([]byte, to-from)
	if _, err := f.s.vol.ReadAt(f.ctx, b, from); err != nil {
		return 0, err
	}
	n := copy(p, b[f.at+off-from:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// head returns the first n bytes of the file, or all if it is smaller.
func (f *file) head(n int64) []byte {
	if f.size > 0 {
		n = min(n, f.size)
	}
	b := make([]byte, n)
	k, _ := f.ReadAt(b, 0)
	return b[:k]
}

// extents returns where bytes [off, off+n) of the file lie.
func (f *file) extents(off, n int64) []vfs.Extent {
	if f.ino == 0 {
		return []vfs.Extent{{Off: f.at + off, Len: n}}
	}
	all, _ := f.s.tree.fs.Extents(f.ctx, f.ino, off, n)
	return all
}

// want asks for bytes [off, off+n) of f with the next requests, to look at f
// when they are there.
func (s *scout) want(f *file, off, n int64) {
	if off >= 0 && s.spend(&n) {
		f.parts = append(f.parts, f.extents(off, n)...)
		s.wanted = append(s.wanted, f)
	}
}

// wantBesides asks for bytes [off, off+n) of f when nothing is wanted that leads
// to other files. It does nothing where all of f was asked for.
func (s *scout) wantBesides(f *file, off, n int64) {
	if f.whole || !s.spend(&n) {
		return
	}
	rest := &file{parts: f.extents(off, n), besides: true}
	if _, ok := f.extension(); ok && n == f.size {
		rest = &file{s: s, ctx: f.ctx, name: f.name, ino: f.ino, size: f.size, parts: rest.parts, names: true}
	}
	s.besides = append(s.besides, rest)
}

// spend takes up to n bytes of those that may be asked for.
func (s *scout) spend(n *int64) bool {
	*n = max(min(*n, s.opts.Total-s.bytes), 0)
	s.bytes += *n
	return *n > 0
}

// find wants the beginning of the file at name, of which all that is no larger
// than whole. It reports whether there is one.
func (s *scout) find(ctx context.Context, name string, whole int64, rpath []string) bool {
	return s.findAs(ctx, name, file{most: whole, rpath: rpath})
}

// findAs is find for a file of which something is known.
func (s *scout) findAs(ctx context.Context, name string, f file) bool {
	ino, real, ok := s.tree.find(ctx, name)
	if !ok {
		return false
	}
	f.s, f.ctx, f.name, f.ino = s, ctx, real, ino
	first := f.extents(0, 1)
	if len(first) == 0 || s.files >= maxFiles {
		return true
	}
	if f.at = first[0].Off; !s.remember(f.at) {
		s.findAgain(f.at, f.most)
		return true
	}
	s.files++
	st, err := s.tree.fs.Stat(ctx, ino)
	if err != nil {
		return true
	}
	f.size = st.Size
	switch {
	case st.Size <= smallFile:
		f.asked, f.whole = true, true
		s.want(&f, 0, st.Size)
	case st.Size <= f.most:
		s.want(&f, 0, headBytes)
		s.wantBesides(&f, 0, st.Size)
		f.whole = true
	default:
		s.want(&f, 0, headBytes)
		s.parted[f.at] = &f
	}
	return true
}

// findAgain wants the rest of the file that begins at byte at, of which only
// parts were wanted so far, if it is no larger than whole.
func (s *scout) findAgain(at, whole int64) {
	f := s.parted[at]
	if f == nil || f.size > whole {
		return
	}
	delete(s.parted, at)
	s.wantBesides(f, 0, f.size)
	f.whole = true
}

// A span is a part of the volume to be fetched at once.
type span struct {
	off, n int64
	files  []*file // that wait for it
	near   bool    // once it was asked for: nothing had to be fetched
}

// merge returns the parts wanted of files in the order of the volume, those
// that lie no further apart than gap as one.
func merge(wanted []*file, gap int64) (spans []span) {
	for _, f := range wanted {
		for _, p := range f.parts {
			spans = append(spans, span{off: p.Off, n: p.Len, files: []*file{f}})
		}
		f.parts = nil
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	merged := spans[:0]
	for _, sp := range spans {
		if i := len(merged) - 1; i >= 0 && sp.off-merged[i].off-merged[i].n <= gap {
			merged[i].n = max(merged[i].n, sp.off+sp.n-merged[i].off)
			merged[i].files = append(merged[i].files, sp.files...)
			continue
		}
		merged = append(merged, sp)
	}
	for _, sp := range merged {
		for _, f := range sp.files { // once for each part
			f.missing++
		}
	}
	return merged
}
