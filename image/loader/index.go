// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"context"
	"maps"
	"path"
	"slices"

	"github.com/overlaybd-go/overlaybd/image/ext4"
)

// programDirs are where programs are started from.
var programDirs = [...]string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// maxPrograms bounds the files of one directory that are looked at.
const maxPrograms = 4 << 10

// identify finds out which program f is, a file found by its content, by where
// programs begin. Without that only its first bytes can be trusted: files have
// holes, and lie in pieces.
func (s *scout) identify(ctx context.Context, f *file) {
	if s.programs == nil {
		s.programs = s.tree.programs(ctx)
	}
	p, ok := s.programs[f.at]
	if !ok {
		return
	}
	if st, err := s.tree.fs.Stat(ctx, p.ino); err == nil {
		f.name, f.ino, f.size, f.program = p.name, p.ino, st.Size, true
	}
}

// A program is a file that can be started.
type program struct {
	ino  ext4.Ino
	name string // its path without symbolic links
}

// programs returns the programs by where they begin.
func (t *tree) programs(ctx context.Context) map[int64]program {
	all := make(map[int64]program)
	var done []*dir
	for _, name := range programDirs {
		d := t.dir(ctx, name)
		if d == nil || slices.Contains(done, d) {
			continue
		}
		done = append(done, d)
		for _, e := range d.byInode() {
			ino, real, ok := t.find(ctx, path.Join(d.path, e.Name))
			if !ok {
				continue
			}
			if at, err := t.fs.Extents(ctx, ino, 0, 1); err == nil && len(at) > 0 {
				all[at[0].Off] = program{ino, real}
			}
		}
	}
	return all
}

// byInode returns the names in the order in which the inodes lie.
func (d *dir) byInode() []ext4.DirEntry {
	all := slices.SortedFunc(maps.Values(d.names), func(a, b ext4.DirEntry) int { return cmp.Compare(a.Ino, b.Ino) })
	return all[:min(len(all), maxPrograms)]
}
