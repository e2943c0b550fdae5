// SPDX-License-Identifier: Apache-2.0

package zstdidx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A stream reads a range of the content. What lies in the zstd file it reads as
// one range too, from the first span that is not kept on.
type stream struct {
	b         *Blob
	ctx       context.Context
	off, end  int64 // of the content
	next      int   // span after p
	p         []byte
	src       io.ReadCloser // nil if not open
	pos, last int64         // of src in the zstd file
	short     bool          // more was asked for than there is
	closed    bool
}

// stream returns a reader of the content [off, off+n), which lies in it.
func (b *Blob) stream(ctx context.Context, off, n int64) *stream {
	s := &stream{b: b, ctx: ctx, off: off, end: off + n}
	if n > 0 {
		s.next = b.x.find(off)
		s.last = b.x.end(b.x.find(off + n - 1))
	}
	return s
}

// Read decodes the next span when the one before is used up.
func (s *stream) Read(p []byte) (int, error) {
	if s.closed {
		return 0, fs.ErrClosed
	}
	if s.off == s.end {
		if s.short {
			return 0, io.ErrUnexpectedEOF
		}
		return 0, io.EOF
	}
	if len(s.p) == 0 {
		whole, err := s.span(s.next)
		if err != nil {
			return 0, err
		}
		s.p = whole[s.off-s.b.x.spans[s.next].start:]
		s.p = s.p[:min(int64(len(s.p)), s.end-s.off)]
		s.next++
	}
	n := copy(p, s.p)
	s.p = s.p[n:]
	s.off += int64(n)
	return n, nil
}

// Close ends the request to the zstd file.
func (s *stream) Close() error {
	s.closed = true
	s.shut()
	return nil
}

// shut ends the request to the zstd file; what it had to say does not matter any
// more.
func (s *stream) shut() {
	if s.src != nil {
		_ = s.src.Close()
		s.src = nil
	}
}

// span returns the content of span i, from wherever it is to be had first.
func (s *stream) span(i int) ([]byte, error) {
	for {
		p, f, mine, err := s.b.claim(i)
		if err != nil || p != nil {
			return p, err
		}
		if mine {
			p, err := s.decode(i)
			s.b.land(i, f, p, err)
			return p, err
		}
		select {
		case <-f.done:
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
		// Another reader's end is not ours: what it gave up, we take over.
		if f.err == nil || !abandoned(f.err) {
			return f.p, f.err
		}
	}
}

// abandoned reports whether err comes of a context's end.
func abandoned(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// decode decodes span i. Where that fails, the fault may be in copies of the
// zstd file that caches have: they are dropped, and it is tried once more.
func (s *stream) decode(i int) ([]byte, error) {
	p, err := s.try(i)
	if !errors.Is(err, ErrCorrupt) {
		return p, err
	}
	x := &s.b.x.spans[i]
	s.shut()
	if derr := fetcher.Drop(s.ctx, s.b.src, x.pos, x.stored); derr != nil && !errors.Is(derr, errors.ErrUnsupported) {
		return nil, errors.Join(err, fmt.Errorf("drop cached bytes %d to %d: %w", x.pos, x.pos+x.stored, derr))
	}
	if p, err = s.try(i); errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: bytes %d to %d: %w", ErrChanged, x.pos, x.pos+x.stored, err)
	}
	return p, err
}

func (s *stream) try(i int) ([]byte, error) {
	x := &s.b.x.spans[i]
	select {
	case s.b.slots <- struct{}{}:
		defer func() { <-s.b.slots }()
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
	if err := s.seek(x.pos); err != nil {
		return nil, err
	}
	d := s.b.lend()
	defer s.b.give(d)
	p, err := s.b.x.decode(d, s.src, i)
	s.pos += x.stored
	if err != nil {
		s.shut() // it may be anywhere
	}
	return p, err
}

// maxSkip is how much of the zstd file is read in vain rather than to ask anew,
// bytes.
const maxSkip = 1 << 20

// seek has src go on at byte pos of the zstd file.
func (s *stream) seek(pos int64) error {
	if s.src != nil && pos-s.pos <= maxSkip {
		_, err := io.CopyN(io.Discard, s.src, pos-s.pos)
		s.pos = pos
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			s.shut()
			return fmt.Errorf("read zstd file up to byte %d: %w", pos, err)
		}
		return nil
	}
	s.shut()
	src, err := fetcher.ReadRange(s.ctx, s.b.src, pos, s.last-pos)
	if err != nil {
		return fmt.Errorf("read zstd file at byte %d: %w", pos, err)
	}
	s.src, s.pos = src, pos
	return nil
}
