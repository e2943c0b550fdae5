// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

const (
	// quietTime is how long nothing must happen until a scout forgets what it
	// knows of the file system. Programs that start read all the time.
	quietTime = 10 * time.Second

	// maxFiles bounds the files asked for until then.
	maxFiles = 4 << 10

	// nearTime is less than any network takes to answer.
	nearTime = time.Millisecond

	// maxNear is after how many requests in a row that found all near a scout
	// takes the image for near, until it was quiet.
	maxNear = 256

	// maxKnown bounds the files that are remembered as looked at, 8 bytes each
	// and as much again.
	maxKnown = 64 << 10
)

// A scout goes ahead of the programs that read a volume. One goroutine does all
// the thinking; others wait for what it asks for and hand it back.
type scout struct {
	vol  Volume
	opts Options

	known map[int64]struct{} // where files begin that were looked at
	tree  *tree              // nil while it is quiet
	deaf  bool               // the volume has no file system that can be read
	files int                // asked for since it was quiet
	bytes int64
	near  int // requests since the last one that had to wait for the network

	programs map[int64]program // of tree, by where they begin
	indexed  int               // how many of programTypes are among them

	imports map[string]struct{} // what files name that others have
	parted  map[int64]*file     // those fetched in parts, by where they begin

	wanted  []*file // not yet asked for
	besides []*file // not yet asked for either; no work with what arrives
	queue   []span  // to be asked for
	later   []span  // after those
	running int
	back    chan span // fetched
	work    sync.WaitGroup
}

func newScout(vol Volume, opts Options) *scout {
	return &scout{
		vol: vol, opts: opts, known: make(map[int64]struct{}), back: make(chan span, opts.Parallel),
		imports: make(map[string]struct{}), parted: make(map[int64]*file),
	}
}

// run looks at the files that begin at the offsets seen, until ctx is done.
func (s *scout) run(ctx context.Context, seen <-chan int64) {
	defer s.work.Wait()
	s.begin(ctx)
	s.ask(ctx)
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	for {
		select {
		case off := <-seen:
			s.look(ctx, off)
		case sp := <-s.back:
			s.arrived(ctx, sp)
		case <-quiet.C:
			s.forget()
			continue
		case <-ctx.Done():
			return
		}
		s.catchUp(ctx)
		s.ask(ctx)
		quiet.Reset(quietTime)
	}
}

// startFiles are read when a container starts, whatever it runs: by those who
// start it, and by the dynamic linker. Those of other machines are not there.
var startFiles = [...]string{
	"/etc/passwd", "/etc/group", "/etc/ld.so.cache",
	"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1",
	"/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6",
}

// begin asks for what every program reads first, while the file system is
// mounted and nobody waits yet, and learns where programs begin.
func (s *scout) begin(ctx context.Context) {
	if !s.ready(ctx) {
		return
	}
	for _, name := range startFiles {
		s.find(ctx, name, s.opts.Whole, nil)
	}
	s.ask(ctx)
	s.index(ctx, programTypes[0])
	s.indexed = 1
}

// catchUp deals with what else has arrived, so that what it all leads to is
// asked for together.
func (s *scout) catchUp(ctx context.Context) {
	for {
		select {
		case sp := <-s.back:
			s.arrived(ctx, sp)
		default:
			return
		}
	}
}

func (s *scout) forget() {
	if s.running == 0 {
		s.tree, s.programs, s.indexed, s.files, s.bytes, s.near = nil, nil, 0, 0, 0, 0
		clear(s.imports)
		clear(s.parted)
	}
}

// ready reports whether there is a file system to look things up in.
func (s *scout) ready(ctx context.Context) bool {
	if s.tree != nil || s.deaf {
		return !s.deaf
	}
	fs, err := openFiles(ctx, s.vol)
	if err != nil {
		s.deaf = ctx.Err() == nil && !errors.Is(err, fetcher.ErrTemporary)
		return false
	}
	s.tree = newTree(fs)
	return true
}

// remember reports whether the file that begins at off is new.
func (s *scout) remember(off int64) bool {
	if _, ok := s.known[off]; ok || len(s.known) >= maxKnown {
		return false
	}
	s.known[off] = struct{}{}
	return true
}

// look looks at a file that a program has begun to read.
func (s *scout) look(ctx context.Context, off int64) {
	if !s.tired() && s.remember(off) && s.ready(ctx) {
		s.open(ctx, &file{s: s, ctx: ctx, at: off})
	}
}

// tired reports whether nothing more is to be done until it was quiet: enough
// was asked for, or all is near.
func (s *scout) tired() bool {
	return s.near >= maxNear || s.files >= maxFiles || s.bytes >= s.opts.Total || s.tree != nil && s.tree.lookups >= maxLookups
}

// arrived looks at the files of which sp was the last part missing.
func (s *scout) arrived(ctx context.Context, sp span) {
	s.running--
	if s.near++; !sp.near {
		s.near = 0
	}
	for _, f := range sp.files {
		if f.missing--; f.missing == 0 && !f.besides && !s.tired() && s.ready(ctx) {
			s.open(ctx, f)
		}
	}
}

// ask asks for what is wanted, as far as there is room for requests.
func (s *scout) ask(ctx context.Context) {
	gap := s.gap()
	s.queue = append(s.queue, merge(s.wanted, gap)...)
	s.later = append(s.later, merge(s.besides, gap)...)
	s.wanted, s.besides = nil, nil
	for s.running < s.opts.Parallel {
		sp, ok := s.next()
		if !ok {
			return
		}
		s.running++
		s.work.Go(func() {
			begun := time.Now()
			if s.vol.Expect(ctx, sp.off, sp.n) != nil { // who needs the bytes will be told
				sp.files = nil
			}
			sp.near = time.Since(begun) < nearTime
			s.back <- sp
		})
	}
}

// gap returns what may be fetched in vain to save a request.
func (s *scout) gap() int64 {
	if s.running+len(s.queue)+len(s.later)+len(s.wanted)+len(s.besides) > s.opts.Parallel {
		return busyGap
	}
	return mergeGap
}

// next returns what to ask for next.
func (s *scout) next() (sp span, ok bool) {
	for _, q := range []*[]span{&s.queue, &s.later} {
		if len(*q) > 0 {
			sp, *q = (*q)[0], (*q)[1:]
			return sp, true
		}
	}
	return span{}, false
}

// open asks for what f leads to.
func (s *scout) open(ctx context.Context, f *file) {
	if f.names {
		s.openNames(ctx, f)
		return
	}
	head := f.head(headBytes)
	switch {
	case isELF(head):
		s.openELF(ctx, f, head)
	case isScript(head):
		s.openScript(ctx, head)
	default:
		s.openModule(ctx, f)
	}
}
