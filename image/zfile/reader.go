// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A Reader is the uncompressed content of a ZFile as a [fetcher.Blob].
type Reader struct {
	src     fetcher.Blob
	h       header
	index   *index
	size    int64 // uncompressed bytes
	helpers helpers
	id      atomic.Uint64 // in recent
}

var (
	_ fetcher.Blob    = (*Reader)(nil)
	_ fetcher.Dropper = (*Reader)(nil)
)

// maxRun bounds one read of the source. 1 MiB is the longest request the
// kernel makes, so that a request costs one round trip; beyond it memory
// matters more.
const maxRun = 1 << maxClass

// Size returns the number of uncompressed bytes.
func (r *Reader) Size() int64 { return r.size }

// Close closes the source.
func (r *Reader) Close() error { return r.src.Close() }

// ReadAt fills p with the uncompressed bytes from off on.
func (r *Reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read zfile at negative offset %d", off)
	}
	var eof error
	if rest := max(r.size-off, 0); int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	done := 0
	for done < len(p) {
		n, err := r.readRun(ctx, p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, eof
}

// readRun fills a prefix of p with one read of the source at most.
func (r *Reader) readRun(ctx context.Context, p []byte, off int64) (int, error) {
	if n := r.recall(p, off); n > 0 {
		return n, nil
	}
	if err := r.index.reach(ctx, r.src, off/int64(r.h.blockSize)); err != nil {
		return 0, err
	}
	first, end := r.run(off, len(p))
	start := r.index.offset(first)
	buf := lend(int(r.index.offset(end) - start))
	defer buf.give()
	if err := readFull(ctx, r.src, buf.b, start); err != nil {
		return 0, fmt.Errorf("read zfile blocks at byte %d: %w", start, err)
	}
	return r.decodeRun(ctx, first, end, buf.b, p, int(off-first*int64(r.h.blockSize)))
}

// recall fills a prefix of p from a block that an earlier read took a part of.
func (r *Reader) recall(p []byte, off int64) int {
	i, skip := off/int64(r.h.blockSize), int(off%int64(r.h.blockSize))
	if skip == 0 && len(p) >= int(r.h.blockSize) {
		return 0
	}
	id := r.id.Load()
	return recentPlace(id, i).copyFrom(id, i, p, skip)
}

// decodeRun decodes blocks [first, end), stored as b, and copies what follows
// the first skip bytes to p. It returns the number of bytes copied before the
// first fault.
func (r *Reader) decodeRun(ctx context.Context, first, end int64, b, p []byte, skip int) (int, error) {
	if (end-first)*int64(r.h.blockSize) > parallelRun && r.helpers.take() {
		return r.decodeHalves(ctx, first, end, b, p, skip)
	}
	start, done := r.index.offset(first), 0
	for i := first; i < end; i++ {
		stored := b[r.index.offset(i)-start : r.index.offset(i+1)-start]
		n, err := r.block(ctx, i, stored, p[done:], skip)
		if err != nil {
			return done, err
		}
		done, skip = done+n, 0
	}
	return done, nil
}

// decodeHalves is decodeRun with the second half done by a helper, which the
// caller has taken.
func (r *Reader) decodeHalves(ctx context.Context, first, end int64, b, p []byte, skip int) (int, error) {
	mid := first + (end-first)/2
	stored, raw := r.index.offset(mid)-r.index.offset(first), int(mid-first)*int(r.h.blockSize)-skip
	var n2 int
	var err2 error
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer r.helpers.give()
		n2, err2 = r.decodeRun(ctx, mid, end, b[stored:], p[raw:], 0)
	}()
	n, err := r.decodeRun(ctx, first, mid, b[:stored], p[:raw], skip)
	<-done
	if err != nil {
		return n, err
	}
	return n + n2, err2
}

// parallelRun is the uncompressed length above which a run is halved: 64 KiB
// take 40 us and more to decompress, waking a goroutine 1 to 5.
const parallelRun = 64 << 10

// helpers bounds the goroutines that decompress for the readers of a blob
// besides those that read.
type helpers chan struct{}

func newHelpers() helpers { return make(helpers, min(runtime.GOMAXPROCS(0), runtime.NumCPU())-1) }

// take takes a helper if one is idle; give gives it back.
func (h helpers) take() bool {
	select {
	case h <- struct{}{}:
		return true
	default:
		return false
	}
}

func (h helpers) give() { <-h }

// run returns the blocks [first, end) that hold as many of the n bytes from
// off on as fit in one read of the source.
func (r *Reader) run(off int64, n int) (first, end int64) {
	bs := int64(r.h.blockSize)
	first = off / bs
	end = (off+int64(n)-1)/bs + 1
	start := r.index.offset(first)
	for end > first+1 && r.index.offset(end)-start > maxRun {
		// A block rarely grows, so that most runs are found in one step.
		over := (r.index.offset(end) - start - maxRun) / int64(r.h.maxStored())
		end = max(end-1-over, first+1)
	}
	return first, end
}

// block decodes block i, stored as b, and copies what follows its first skip
// bytes to p. It returns the number of bytes copied.
func (r *Reader) block(ctx context.Context, i int64, b, p []byte, skip int) (int, error) {
	raw := int(min(r.size-i*int64(r.h.blockSize), int64(r.h.blockSize)))
	if skip == 0 && len(p) >= raw {
		return raw, r.decode(ctx, i, b, p[:raw:raw])
	}
	id := r.id.Load() // before the block is read again, if it is corrupt
	scratch := lend(raw)
	if err := r.decode(ctx, i, b, scratch.b); err != nil {
		scratch.give()
		return 0, err
	}
	n := copy(p, scratch.b[skip:])
	recentPlace(id, i).keep(id, i, scratch)
	return n, nil
}

// decode checks and decompresses block i, stored as b, into dst. A corrupt
// block it drops from the caches below and reads once more, into b.
func (r *Reader) decode(ctx context.Context, i int64, b, dst []byte) error {
	err := r.tryDecode(i, b, dst)
	if err == nil {
		return nil
	}
	off := r.index.offset(i)
	return heal(ctx, r.src, off, int64(len(b)), err, func() error {
		if err := readFull(ctx, r.src, b, off); err != nil {
			return fmt.Errorf("read zfile block %d at byte %d again: %w", i, off, err)
		}
		return r.tryDecode(i, b, dst)
	})
}

func (r *Reader) tryDecode(i int64, b, dst []byte) error {
	if r.h.checksums {
		var sum []byte
		b, sum = b[:len(b)-crcSize], b[len(b)-crcSize:]
		if got, want := checksum(blockSeed, b), binary.LittleEndian.Uint32(sum); got != want {
			return corruptf(r.index.offset(i), "CRC of block %d is %08x, computed %08x", i, want, got)
		}
	}
	if err := r.h.algorithm.decompress(dst, b); err != nil {
		return corruptf(r.index.offset(i), "decompress block %d: %s", i, err)
	}
	return nil
}

// Drop makes the source forget the blocks that hold bytes [off, off+n).
func (r *Reader) Drop(ctx context.Context, off, n int64) error {
	off = max(off, 0)
	if n = min(n, r.size-off); n <= 0 {
		return nil
	}
	r.id.Store(readers.Add(1)) // forgets what was read before
	end := off + n
	bs := int64(r.h.blockSize)
	if err := r.index.reach(ctx, r.src, off/bs); err != nil {
		return err
	}
	start := r.index.offset(off / bs)
	return fetcher.Drop(ctx, r.src, start, r.index.offset((end-1)/bs+1)-start)
}
