// SPDX-License-Identifier: Apache-2.0

package spans_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"
	"testing/synctest"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/spans"
)

// stalling returns a Blob whose source stalls in the middle of the third piece of
// span 2.
func stalling(t *testing.T, recent int) (b *spans.Blob, content []byte, src *source) {
	t.Helper()
	content = fetchertest.Content(200_000, 1)
	b, x, src := opened(t, content, 0, recent)
	src.stall, src.at = make(chan struct{}), x.from[2]+2*(4+piece)+1000
	return b, content, src
}

// What is there of a span is read while the rest of it is not.
func TestReadBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := stalling(t, -1)
		begun := begin(t.Context(), b, content, 2*length+2*piece-10, 20) // in pieces 1 and 2
		for _, off := range []int64{2 * length, 2*length + piece - 5} {
			ends(t, begin(t.Context(), b, content, off, 10), nil)
		}
		select {
		case err := <-begun:
			t.Error("a read of what did not arrive ended with", err)
		default:
		}
		close(src.stall)
		ends(t, begun, nil)
		if len(src.reads) != 1 {
			t.Errorf("source was read %d times", len(src.reads))
		}
	})
}

// A reader of a range gets one piece after the other, over the end of a span.
func TestRangeInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := stalling(t, -1)
		r, err := b.ReadRange(t.Context(), length+10, 2*length)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make([]byte, 2*length)
		arrived := length - 10 + 2*piece
		if _, err := io.ReadFull(r, got[:arrived]); err != nil {
			t.Fatal(err)
		}
		rest := make(chan error)
		go func() {
			_, err := io.ReadFull(r, got[arrived:])
			rest <- err
		}()
		synctest.Wait()
		select {
		case err := <-rest:
			t.Error("what did not arrive was read:", err)
		default:
		}
		close(src.stall)
		if err := <-rest; err != nil || !bytes.Equal(got, content[length+10:3*length+10]) {
			t.Error("wrong bytes, or", err)
		}
	})
}

// Who gives up while a span comes is no burden on the others, nor on itself.
func TestGiveUpAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := stalling(t, -1)
		ctx, cancel := context.WithCancel(t.Context())
		r, err := b.ReadRange(ctx, 2*length, length)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		p := make([]byte, length)
		if _, err := io.ReadFull(r, p[:2*piece]); err != nil {
			t.Fatal(err)
		}
		other := begin(t.Context(), b, content, 3*length-10, 10)
		go cancel()
		if n, err := r.Read(p); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("read %d bytes, %v", n, err)
		}
		close(src.stall)
		ends(t, other, nil)
	})
}

// A span of which somebody had a part is decoded to its end, so that who reads on
// in small steps does not have it begun again; what comes behind it is not.
func TestPartIsFollowedByTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := stalling(t, 1<<20)
		r, err := b.ReadRange(t.Context(), 2*length, 3*length)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		synctest.Wait()
		if src.given != 0 {
			t.Error("the span was given up")
		}
		begun := begin(t.Context(), b, content, 2*length+3*piece, 10) // joins
		close(src.stall)
		ends(t, begun, nil)
		want(t, b, content, 2*length, length)
		if len(src.reads) != 1 {
			t.Errorf("source was read at %v, want one read", src.reads)
		}
		want(t, b, content, 3*length, 10)
		if len(src.reads) != 2 {
			t.Error("what nobody had a part of was decoded")
		}
	})
}

// A span that was left is not waited for by Close.
func TestCloseEndsWhatWasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := stalling(t, 1<<20)
		want(t, b, content, 2*length, 10)
		synctest.Wait()
		if err := b.Close(); err != nil || src.given != 1 {
			t.Errorf("Close: %v; %d reads given up", err, src.given)
		}
	})
}

// A fault further on does not take back what was read, and is told to who reads
// further on.
func TestFaultInAPiece(t *testing.T) {
	content := fetchertest.Content(200_000, 1)
	b, x, src := opened(t, content, 0, 1<<20)
	src.data[x.from[2]+2*(4+piece)+1000] ^= 1
	for range 2 {
		want(t, b, content, 2*length+piece, piece)
		p := make([]byte, 2*length)
		n, err := b.ReadAt(t.Context(), p, 2*length+100)
		if n != 2*piece-100 || !errors.Is(err, errChanged) || !bytes.Equal(p[:n], content[2*length+100:][:n]) {
			t.Errorf("read %d bytes, %v; want %d, and %v", n, err, 2*piece-100, errChanged)
		}
	}
}

// A fault that a second try does not meet with shows nowhere.
func TestFaultHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := stalling(t, -1)
		good := src.data
		src.data = bytes.Clone(good)
		src.data[src.at] ^= 1
		r, err := b.ReadRange(t.Context(), 2*length, length)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make([]byte, length)
		if _, err := io.ReadFull(r, got[:2*piece]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		src.heal(good)
		if _, err := io.ReadFull(r, got[2*piece:]); err != nil || !bytes.Equal(got, content[2*length:3*length]) {
			t.Error("wrong bytes, or", err)
		}
		if len(src.dropped) != 1 || len(src.reads) != 2 {
			t.Errorf("dropped %v, read %v; want each span once more", src.dropped, src.reads)
		}
	})
}

// heal has the source go on, and hold other data from its next read on.
func (s *source) heal(data []byte) {
	s.mu.Lock()
	s.data = data
	s.mu.Unlock()
	close(s.stall)
}

// Where a second try leads to other bytes, which have the right sum all the same,
// nobody gets some of the first and some of the second.
func TestSecondTryDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, content, src := stalling(t, -1)
		other := bytes.Clone(src.data)
		at := int(src.at) - 1000 - 2*(4+piece) // span 2
		other[at+4] ^= 1
		binary.LittleEndian.PutUint32(other[at:], crc32.ChecksumIEEE(other[at+4:at+4+piece]))
		src.data[src.at] ^= 1
		want(t, b, content, 2*length, 10)
		late := begin(t.Context(), b, content, 3*length-10, 10)
		src.heal(other)
		ends(t, late, errChanged)
		if len(src.reads) != 2 {
			t.Errorf("read %v, want two reads", src.reads)
		}
	})
}
