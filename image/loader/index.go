// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"context"
	"maps"
	"path"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// programDirs are where programs are started from.
var programDirs = [...]string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// maxPrograms bounds the files of one directory that are looked at.
const maxPrograms = 4 << 10

// programTypes are those of the names of programs, in the order in which they
// are looked at: most are no links, and links lead to all over the file system.
var programTypes = [...]vfs.Type{vfs.TypeRegular, vfs.TypeSymlink}

// identify finds out which program f is, a file found by its content, by where
// programs begin. Without that only its first bytes can be trusted: files have
// holes, and lie in pieces.
func (s *scout) identify(ctx context.Context, f *file) {
	p, ok := s.programs[f.at]
	for ; !ok && s.indexed < len(programTypes); s.indexed++ {
		s.index(ctx, programTypes[s.indexed])
		p, ok = s.programs[f.at]
	}
	if !ok {
		return
	}
	if st, err := s.tree.fs.Stat(ctx, p.ino); err == nil {
		f.name, f.ino, f.size, f.program = p.name, p.ino, st.Size, true
	}
}

// A program is a file that can be started.
type program struct {
	ino  vfs.Ino
	name string // its path without symbolic links
}

// index notes where the programs begin whose names are of type t.
func (s *scout) index(ctx context.Context, t vfs.Type) {
	if s.programs == nil {
		s.programs = make(map[int64]program)
	}
	var done []*dir
	for _, name := range programDirs {
		d := s.tree.dir(ctx, name)
		if d == nil || slices.Contains(done, d) {
			continue
		}
		done = append(done, d)
		entries := d.byInode(t)
		s.fetchInodes(ctx, entries)
		for _, e := range entries {
			ino, real, ok := s.tree.find(ctx, path.Join(d.path, e.Name))
			if !ok {
				continue
			}
			if at, err := s.tree.fs.Extents(ctx, ino, 0, 1); err == nil && len(at) > 0 {
				s.programs[at[0].Off] = program{ino, real}
			}
		}
	}
}

// fetchInodes has the inodes of entries fetched side by side, which are read
// one after the other.
func (s *scout) fetchInodes(ctx context.Context, entries []vfs.DirEntry) {
	if len(entries) < 2 {
		return
	}
	var f file
	for _, e := range entries {
		if block, ok := s.tree.fs.InodeBlock(e.Ino); ok {
			f.parts = append(f.parts, block)
		}
	}
	var g errgroup.Group
	g.SetLimit(s.opts.Parallel)
	for _, sp := range merge([]*file{&f}, mergeGap) {
		g.Go(func() error { return s.vol.Expect(ctx, sp.off, sp.n) })
	}
	_ = g.Wait() // reads will tell
}

// byInode returns the names of type t in the order in which the inodes lie.
func (d *dir) byInode(t vfs.Type) []vfs.DirEntry {
	all := slices.SortedFunc(maps.Values(d.names), func(a, b vfs.DirEntry) int { return cmp.Compare(a.Ino, b.Ino) })
	all = slices.DeleteFunc(all, func(e vfs.DirEntry) bool { return e.Type != t })
	return all[:min(len(all), maxPrograms)]
}
