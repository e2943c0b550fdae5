// SPDX-License-Identifier: Apache-2.0

// Package loader has the files fetched that a program is about to read, while
// it starts from an image whose blocks are far away. Without it each library
// and each module costs the program a round trip or more, one after the other.
//
// The one thing to know: it guesses from content alone. [Wrap] sees the reads
// of a volume. One that begins with the first bytes of an ELF file or of a
// compiled Python module tells that a file is being opened; what that file
// names is looked up in the volume's own ext4 file system and fetched, side by
// side, and so on with what those files name. A wrong guess costs bytes, never
// correctness: nothing here is in the way of a read.
//
// Everything that is parsed may be hostile, and is bounded in depth, number and
// bytes.
package loader

import (
	"cmp"
	"context"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A Volume is an image, some blocks of which may be far away.
type Volume interface {
	backend.Volume

	// Expect has bytes [off, off+n) fetched for a reader to come, and returns
	// when reads find them near.
	Expect(ctx context.Context, off, n int64) error

	// Far reports whether there are any blocks to fetch.
	Far() bool
}

// Options say how much may be fetched. Zeroes mean the defaults.
type Options struct {
	// Whole is the size, in bytes, up to which a library is fetched as a whole,
	// which a program may be twice as large as: an interpreter's code is used more
	// than a library's. 5 MiB if zero: of NumPy's own library and that of
	// OpenSSL, which are of 4.5 MiB, two thirds are read when Python loads them,
	// of that of LAPACK, of 7 MiB, a twentieth.
	Whole int64

	// Part is what is fetched of a larger one, in bytes: each of the tables and
	// the data that the dynamic linker reads. 1 MiB if zero. Where there is no
	// code among them it is four times that.
	Part int64

	// Total bounds the bytes asked for until there is silence again for
	// quietTime. 256 MiB if zero: pandas and SciPy take 105 MiB.
	Total int64

	// Parallel is how many requests are made at the same time. 48 if zero: with 24
	// the longest chain of pandas's requests is a sixth longer, with 96 no shorter.
	Parallel int
}

func (o Options) withDefaults() Options {
	o.Whole = cmp.Or(o.Whole, 5<<20)
	o.Part = cmp.Or(o.Part, 1<<20)
	o.Total = cmp.Or(o.Total, 256<<20)
	o.Parallel = cmp.Or(o.Parallel, 48)
	return o
}

// maxSeen is how many beginnings of files wait to be looked at; more are
// forgotten.
const maxSeen = 64

// Wrap returns v as a volume whose reads are watched, or v itself if all of it
// is near. The result owns v.
func Wrap(v Volume, opts Options) backend.Volume {
	if !v.Far() {
		return v
	}
	ctx, end := context.WithCancel(context.Background())
	w := &watched{Volume: v, seen: make(chan int64, maxSeen), end: end, ended: make(chan struct{})}
	s := newScout(v, opts.withDefaults())
	go func() {
		defer close(w.ended)
		s.run(ctx, w.seen)
	}()
	return w
}

// watched is a volume whose reads a scout is told of.
type watched struct {
	Volume
	seen  chan int64
	end   context.CancelFunc
	ended chan struct{}
}

// ReadAt reads from the volume. Where that begins a file of interest, the scout
// is told, unless it has enough to do.
func (w *watched) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := w.Volume.ReadAt(ctx, p, off)
	if n >= 4 && interesting(p) {
		select {
		case w.seen <- off:
		default:
		}
	}
	return n, err
}

// interesting reports whether p begins a file that names others.
func interesting(p []byte) bool {
	if isELF(p) || isScript(p) {
		return true
	}
	_, ok := pythonOf(p)
	return ok
}

// Close ends the scout and closes the volume.
func (w *watched) Close() error {
	w.end()
	<-w.ended
	return w.Volume.Close()
}
