// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

var (
	seed  = flag.Uint64("seed", 1, "of the first random edits")
	edits = flag.Int("edits", 400/slow, "random edits in a program")
)

// A program is a sequence of random edits, each decided by a number of its
// own, so that a failing program can be shrunk by leaving edits out.
type program []uint64

func newProgram(seed uint64, n int) program {
	r := rand.New(rand.NewPCG(seed, 0))
	p := make(program, n)
	for i := range p {
		p[i] = r.Uint64()
	}
	return p
}

// shrink leaves out what it can as long as fails returns an error.
func (p program) shrink(fails func(program) error) (program, error) {
	err := fails(p)
	for step := len(p) / 2; step > 0 && err != nil; {
		shorter := false
		for at := 0; at+step <= len(p); {
			q := slices.Delete(slices.Clone(p), at, at+step)
			if e := fails(q); e != nil {
				p, err, shorter = q, e, true
			} else {
				at += step
			}
		}
		if !shorter || step > 1 {
			step /= 2
		}
	}
	return p, err
}

// An editor makes random edits.
type editor struct {
	*pair
	r   *rand.Rand
	log *strings.Builder
}

// A chain is a disk that grows by layers. One that is a plain file has but one.
type chain interface {
	// top returns the layer that is being made.
	top() backend.Writer

	// next begins the next layer.
	next(ctx context.Context) error
}

// run makes the edits of p in an empty file system on c, in layers, and
// compares it with the model.
func (p program) run(ctx context.Context, c chain, log *strings.Builder) (*pair, error) {
	if err := erofs.Format(ctx, c.top(), erofs.FormatOptions{}); err != nil {
		return nil, err
	}
	f, err := erofs.Open(ctx, c.top())
	if err != nil {
		return nil, err
	}
	model, err := newPair(ctx, f)
	if err != nil {
		return nil, err
	}
	if c, ok := c.(*layers); ok && c.turbo {
		model.target = c.addTarget
	}
	e := &editor{pair: model, log: log}
	for i, word := range p {
		e.r = rand.New(rand.NewPCG(word, 1))
		err := e.edit()
		if err == nil && word%70 == 0 {
			err = e.fs.Sync(ctx)
		}
		if err == nil && word%50 == 1 {
			err = e.nextLayer(c)
		}
		if err != nil {
			return nil, fmt.Errorf("edit %d of %d: %w", i, len(p), err)
		}
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("before it is written: %w", err)
	}
	return model, e.nextLayer(c)
}

// nextLayer goes on in the next layer.
func (e *editor) nextLayer(c chain) error {
	fmt.Fprintln(e.log, "next layer")
	if err := e.fs.Sync(e.ctx); err != nil {
		return err
	}
	err := c.next(e.ctx)
	if _, ok := c.(plainFile); ok && err == nil {
		err = e.checkRead(c.top())
	}
	if err == nil {
		e.fs, err = erofs.Open(e.ctx, c.top())
	}
	if err == nil {
		err = e.check()
	}
	return err
}

func (e *editor) edit() error {
	dirs, files := e.paths()
	dir := dirs[e.r.IntN(len(dirs))]
	name := path.Join(dir, e.name())
	file := files[e.r.IntN(len(files))]
	op := e.r.IntN(100)
	fmt.Fprintf(e.log, "op %d dir %s name %s file %s\n", op, dir, name, file)
	switch {
	case op < 22:
		return e.create(name, e.attr(syscall.S_IFREG))
	case op < 32:
		return e.create(name, e.attr(syscall.S_IFDIR))
	case op < 37:
		return e.symlink(name, strings.Repeat("t", 1+e.r.IntN(120)), e.attr(0))
	case op < 42:
		return e.create(name, e.attr([]uint32{syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK}[e.r.IntN(4)]))
	case op < 58:
		return e.writeRandom(file)
	case op < 63:
		return e.link(name, file)
	case op < 80:
		return e.removeAny(file, name)
	case op < 86:
		return e.setAttr(file, e.attr(0))
	case op < 94:
		return e.setXattrs(file, e.xattrs(file))
	case op < 97:
		return e.many(dir)
	}
	return e.fewer(dir)
}

// paths lists the directories and all files.
func (e *editor) paths() (dirs, files []string) {
	var walk func(name string, n *node)
	walk = func(name string, n *node) {
		files = append(files, name)
		if !n.isDir() {
			return
		}
		dirs = append(dirs, name)
		for _, k := range slices.Sorted(maps.Keys(n.names)) {
			walk(path.Join(name, k), n.names[k])
		}
	}
	walk("/", e.root)
	return dirs, files
}

func (e *editor) name() string {
	k := e.r.IntN(60)
	return fmt.Sprintf("n%d%s", k, strings.Repeat("x", k*k%250))
}

func (e *editor) attr(kind uint32) vfs.Attr {
	at := func() time.Time {
		return time.Unix(e.r.Int64N(1<<34)-1<<31, e.r.Int64N(1e9)).UTC()
	}
	a := vfs.Attr{Mode: kind | e.r.Uint32N(0o10000), UID: e.r.Uint32(), GID: e.r.Uint32(), Atime: at(), Mtime: at(), Ctime: at()}
	if kind == syscall.S_IFCHR || kind == syscall.S_IFBLK {
		a.Major, a.Minor = e.r.Uint32N(1<<(1+e.r.IntN(12))), e.r.Uint32N(1<<(1+e.r.IntN(20)))
	}
	return a
}

// xattrs returns attributes for a file. The kernel shows those of users with
// regular files and directories only.
func (e *editor) xattrs(file string) map[string][]byte {
	spaces := []string{"trusted.", "security.", "user."}
	if n, _, err := e.at(file); err == nil && n.attr.Mode&syscall.S_IFMT != syscall.S_IFREG && !n.isDir() {
		spaces = spaces[:2]
	}
	most := 12
	if file == "/" {
		most = 8 // it has the rest of its block
	}
	m := map[string][]byte{}
	for range e.r.IntN(5) {
		prefix := spaces[e.r.IntN(len(spaces))]
		m[prefix+strings.Repeat("k", 1+e.r.IntN(30))] = pattern(e.r.IntN(99), e.r.IntN(1<<(1+e.r.IntN(most))))
	}
	return m
}

func (e *editor) writeRandom(file string) error {
	if n, _, err := e.at(file); err != nil || n.attr.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return err
	}
	var parts [][]byte
	total := 0
	for i := range e.r.IntN(8) {
		n := e.r.IntN(1 << (1 + e.r.IntN(16)))
		total += n
		parts = append(parts, [][]byte{pattern(i, n), make([]byte, n)}[i%2])
	}
	return e.write(file, int64(total*e.r.IntN(3)), parts...)
}

// removeAny removes the file, or if it is the root, what may be called name.
func (e *editor) removeAny(file, name string) error {
	if file == "/" {
		file = name
	}
	return e.remove(file)
}

// many adds many files to a directory.
func (e *editor) many(dir string) error {
	k := e.r.IntN(1000)
	for i := range 150 {
		name := fmt.Sprintf("%s/%d-%d-%s", dir, k, i, bytes.Repeat([]byte{'a' + byte(i%26)}, i%40))
		if err := e.create(name, e.attr(syscall.S_IFREG)); err != nil {
			return err
		}
	}
	return nil
}

// fewer removes every second name of a directory that can be.
func (e *editor) fewer(dir string) error {
	n, _, err := e.at(dir)
	if err != nil {
		return err
	}
	for i, name := range slices.Sorted(maps.Keys(n.names)) {
		if i%2 == 0 {
			if err := e.remove(path.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// A plainFile is a chain of one layer.
type plainFile struct{ fileVolume }

func (c plainFile) top() backend.Writer        { return c.fileVolume }
func (c plainFile) next(context.Context) error { return nil }

func TestRandomEdits(t *testing.T) {
	v := plainFile{newFile(t, 256<<20)}
	model := newProgram(*seed, *edits).mustRun(t, v, func() chain { return plainFile{newFile(t, 256<<20)} })
	model.kernelAgrees(t, v.fileVolume)
	fsck(t, v.fileVolume)
}

// mustRun runs p on c, or shrinks p on fresh chains and fails.
func (p program) mustRun(t *testing.T, c chain, fresh func() chain) *pair {
	t.Helper()
	var log strings.Builder
	model, err := p.run(t.Context(), c, &log)
	if err != nil {
		p, err = p.shrink(func(p program) error {
			log.Reset()
			_, err := p.run(t.Context(), fresh(), &log)
			return err
		})
		t.Fatalf("-seed=%d: %v\nshrunk to %d edits:\n%s", *seed, err, len(p), log.String())
	}
	return model
}
