// SPDX-License-Identifier: Apache-2.0

package spans

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A stream decodes spans of one read of the source, and takes it up again
// where it broke.
type stream struct {
	b    *Blob
	d    Decoder // nil before the first bytes are near
	last *flight
	r    *supply // nil if there is none, or it is not where the next span starts
}

// end gives back what the stream has.
func (s *stream) end() {
	s.close()
	if s.d != nil {
		s.b.giveBack(s.d)
	}
}

func (s *stream) close() {
	if s.r != nil {
		s.r.close()
		s.r = nil
	}
}

// decode decodes the span of f. If the bytes are wrong, the fault may be in a copy
// that a cache keeps, so they are dropped and read again.
func (s *stream) decode(ctx context.Context, f *flight) error {
	err := s.try(ctx, f)
	if !errors.Is(err, s.b.format.Changed) {
		return err
	}
	s.b.keepHead(f.span, nil)
	from, to := s.b.table.Stored(f.span)
	if derr := fetcher.Drop(ctx, s.b.src, from, to-from); derr != nil && !errors.Is(derr, errors.ErrUnsupported) {
		return errors.Join(err, fmt.Errorf("drop cached bytes %d to %d: %w", from, to, derr))
	}
	return s.try(ctx, f)
}

func (s *stream) try(ctx context.Context, f *flight) error {
	err := s.open(ctx, f.span)
	if err == nil {
		err = s.d.Decode(f.span, func(content []byte) error {
			if !f.grow(content) {
				return fmt.Errorf("%w: it was decoded to other bytes before", s.b.format.Changed)
			}
			if s.b.parts && f.enough() {
				return errEnough
			}
			return nil
		})
	}
	switch {
	case errors.Is(err, errEnough):
		s.r.drain()
		s.b.keepHead(f.span, s.r.kept)
		s.close()
		if !f.settle() { // somebody came who wants more
			return s.try(ctx, f)
		}
		err = nil
	case err != nil:
		s.close()
	case s.b.parts:
		s.b.keepHead(f.span, nil)
	}
	return err
}

// open has the stream begin with span i, unless it is there.
func (s *stream) open(ctx context.Context, i int) error {
	if s.r != nil {
		return nil
	}
	s.r = s.supply(ctx, i)
	if err := s.r.open(); err != nil {
		return err
	}
	if s.d == nil {
		s.d = s.b.lend()
	}
	return s.d.Reset(s.r, i)
}

// supply returns what is stored from span i on, beginning with what an earlier
// stream had of that. Of the last span it asks for as much as is likely wanted.
func (s *stream) supply(ctx context.Context, i int) *supply {
	from, _ := s.b.table.Stored(i)
	first, end := s.b.table.Stored(s.last.span)
	u := &supply{ctx: ctx, src: s.b.src, pos: from, asked: end, end: end, keepFrom: end}
	if !s.b.parts {
		return u
	}
	u.head = s.b.head(i)
	if need, size := s.last.wanted(); need < size {
		u.asked, u.keepFrom = first+likely(end-first, int64(need), int64(size)), first
		if i == s.last.span {
			u.kept = slices.Clone(u.head)
		}
	}
	u.asked = max(u.asked, u.pos+int64(len(u.head)))
	return u
}

// likely returns how many of stored bytes, which are size bytes of content, the
// first need of these take: more than their share, since content is not
// compressed evenly. Too few cost a round trip.
func likely(stored, need, size int64) int64 {
	share := int64(float64(stored) * float64(need) / float64(size)) // no product of what an index says
	return min(stored, share+share/8+min(stored/16, 16<<10))
}

// A supply reads bytes of the source until it is done, so that nothing is decoded
// in vain for long: a source that has the bytes already need not look at a context.
// Beyond those that are likely to be enough, it asks for the rest.
type supply struct {
	ctx  context.Context //nolint:containedctx // a reader knows no other way
	src  fetcher.Blob
	head []byte        // bytes at pos that need not be read
	r    io.ReadCloser // the others, up to asked; nil if there are none

	pos, asked, end int64 // bytes of the source

	keepFrom int64 // from where on bytes are kept
	kept     []byte
}

// open asks for bytes.
func (u *supply) open() (err error) {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	if at := u.pos + int64(len(u.head)); at < u.asked {
		u.r, err = fetcher.ReadRange(u.ctx, u.src, at, u.asked-at)
	}
	return err
}

func (u *supply) Read(p []byte) (n int, err error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	if len(u.head) > 0 {
		n = copy(p, u.head)
		u.head = u.head[n:]
		u.pos += int64(n)
		return n, nil
	}
	if u.pos == u.asked && u.asked < u.end {
		u.close()
		u.asked = u.end
		if err := u.open(); err != nil {
			return 0, err
		}
	}
	if u.r == nil {
		return 0, io.EOF
	}
	n, err = u.r.Read(p)
	u.keep(p[:n])
	u.pos += int64(n)
	if errors.Is(err, io.EOF) && u.pos < u.end && u.pos == u.asked {
		err = nil
	}
	return n, err
}

// keep keeps bytes at pos that another stream may want.
func (u *supply) keep(p []byte) {
	if skip := u.keepFrom - u.pos; skip < int64(len(p)) {
		u.kept = append(u.kept, p[max(skip, 0):]...)
	}
}

// drain keeps what was asked for and not needed: it is on its way.
func (u *supply) drain() {
	var p [4 << 10]byte
	for u.pos < u.asked {
		if _, err := u.Read(p[:min(u.asked-u.pos, int64(len(p)))]); err != nil {
			return
		}
	}
}

func (u *supply) close() {
	if u.r != nil {
		u.r.Close()
		u.r = nil
	}
}
