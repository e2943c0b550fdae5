// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
)

// A source is a file in memory, of which a cache may have a bad copy, and which
// notes how much was read behind byte from.
type source struct {
	file []byte
	from int64

	mu   sync.Mutex // guards what follows
	bad  []byte     // copy; nil once it was dropped
	read int64      // bytes
}

func (s *source) Size() int64  { return int64(len(s.file)) }
func (s *source) Close() error { return nil }

func (s *source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.file
	if s.bad != nil {
		from = s.bad
	}
	n := copy(p, from[off:])
	if off >= s.from {
		s.read += int64(n)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *source) Drop(context.Context, int64, int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad = nil
	return nil
}

// longBlocks is more than an index that is read at once has.
const longBlocks = wholeIndex/crcSize + 1000

// longFile returns a file of so many blocks, each of which repeats its number,
// and where its index begins.
func longFile(t testing.TB) ([]byte, int64) {
	t.Helper()
	made := makeLongFile()
	if made.err != nil {
		t.Fatal(made.err)
	}
	return bytes.Clone(made.file), made.index
}

type madeFile struct {
	file  []byte
	index int64
	err   error
}

var makeLongFile = sync.OnceValue(func() madeFile {
	c, err := newCompressor(LZ4, Normal)
	if err != nil {
		return madeFile{err: err}
	}
	h := header{flags: flagHeader | flagData | flagDigest, blockSize: minBlockSize, algorithm: LZ4, checksums: true}
	file, lengths := h.marshal(), []byte(nil)
	for i := range uint64(longBlocks) {
		start := len(file)
		if file, err = c.append(file, numbered(i)); err != nil {
			return madeFile{err: err}
		}
		file = binary.LittleEndian.AppendUint32(file, checksum(blockSeed, file[start:]))
		lengths = binary.LittleEndian.AppendUint32(lengths, uint32(len(file)-start))
	}
	h.flags = trailerFlags
	h.indexOffset, h.blocks, h.size = uint64(len(file)), longBlocks, longBlocks*minBlockSize
	h.indexCRC = checksum(0, lengths)
	return madeFile{file: slices.Concat(file, lengths, h.marshal()), index: int64(len(file))}
})

// numbered returns block i.
func numbered(i uint64) []byte {
	p := binary.LittleEndian.AppendUint64(nil, i)
	return bytes.Repeat(append(p, make([]byte, i%3*16)...), minBlockSize)[:minBlockSize]
}

// checkBlock reads block i.
func checkBlock(t *testing.T, r *Reader, i uint64) error {
	t.Helper()
	p := make([]byte, minBlockSize)
	if _, err := r.ReadAt(t.Context(), p, int64(i)*minBlockSize); err != nil {
		return err
	}
	if !bytes.Equal(p, numbered(i)) {
		t.Errorf("block %d has other content", i)
	}
	return nil
}

// TestLongIndex: a long index is read in full when a read needs that, once.
func TestLongIndex(t *testing.T) {
	file, at := longFile(t)
	src := &source{file: file, from: at}
	r, err := OpenEnd(t.Context(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{longBlocks - 1, longBlocks - indexEnd/crcSize} {
		if err := checkBlock(t, r, i); err != nil {
			t.Error(err)
		}
	}
	if src.read > indexEnd+headerSize {
		t.Errorf("%d bytes read for the end of the file", src.read)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	src.read = 0
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() {
			if err := checkBlock(t, r, i*longBlocks/8); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if want := int64(longBlocks * crcSize); src.read != want {
		t.Errorf("%d bytes of the index read, want all %d once", src.read, want)
	}
}

// TestLongIndexDamaged: what is wrong in a cache's copy of the index is read
// again, or reported, and never content.
func TestLongIndexDamaged(t *testing.T) {
	file, at := longFile(t)
	entry := func(i int) int { return int(at) + i*crcSize }
	end := longBlocks - indexEnd/crcSize
	for name, tt := range map[string]struct {
		bad  int // entry
		fail bool
	}{
		"front":                            {3, false},
		"end, found when the rest is read": {end + 100, true},
	} {
		t.Run(name, func(t *testing.T) {
			src := &source{file: file, bad: bytes.Clone(file)}
			src.bad[entry(tt.bad)]++
			r, err := OpenEnd(t.Context(), src, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkBlock(t, r, longBlocks-1); err != nil {
				t.Error(err)
			}
			if err := checkBlock(t, r, 7); (err != nil) != tt.fail || tt.fail && !errors.Is(err, ErrCorrupt) {
				t.Errorf("a block in front: %v, want an error %v", err, tt.fail)
			}
		})
	}
}

// TestLongIndexOfOtherCalls: what is not a read finds blocks in front, too.
func TestLongIndexOfOtherCalls(t *testing.T) {
	file, _ := longFile(t)
	for name, call := range map[string]func(*Reader) error{
		"Drop":   func(r *Reader) error { return r.Drop(t.Context(), 5000, 1) },
		"Expect": func(r *Reader) error { return r.Expect(t.Context(), 5000, 1) },
	} {
		r, err := OpenEnd(t.Context(), &source{file: file}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := call(r); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestIndexIsShared: readers of one content have one index, until it turns out
// to be wrong.
func TestIndexIsShared(t *testing.T) {
	file, at := longFile(t)
	var memo sync.Map
	src := &source{file: file, from: at}
	first, err := OpenEnd(t.Context(), src, &memo)
	if err != nil {
		t.Fatal(err)
	}
	src.read = 0
	second, err := OpenEnd(t.Context(), src, &memo)
	if err != nil {
		t.Fatal(err)
	}
	if second.index != first.index || src.read > headerSize {
		t.Errorf("another index, or %d bytes read", src.read)
	}
	file[at]++
	if err := checkBlock(t, second, 7); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	file[at]--
	third, err := OpenEnd(t.Context(), src, &memo)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkBlock(t, third, 7); err != nil || third.index == first.index {
		t.Errorf("the index that was wrong is used again, %v", err)
	}
}

// FuzzTable wants the end of an index, read alone, to say what the whole says.
func FuzzTable(f *testing.F) {
	f.Add([]byte{9, 0, 0, 0, 20, 0, 0, 0, 255, 1, 0, 0}, uint16(1), int64(0))
	f.Add(bytes.Repeat([]byte{16, 2, 0, 0}, 300), uint16(200), int64(-1))
	f.Fuzz(func(t *testing.T, lengths []byte, first uint16, shift int64) {
		n := len(lengths) / crcSize
		if int(first) >= n {
			return
		}
		var sum int64
		for i := range n {
			sum += int64(binary.LittleEndian.Uint32(lengths[i*crcSize:]))
		}
		if sum += headerSize + shift%4; sum > 1<<20 {
			return
		}
		h := header{blockSize: minBlockSize, algorithm: LZ4, checksums: true, blocks: uint64(n), indexOffset: uint64(sum)}
		src := &source{file: append(make([]byte, sum), lengths...)}
		whole, err := readTable(t.Context(), src, h, 0)
		end, endErr := readTable(t.Context(), src, h, int64(first))
		switch {
		case endErr != nil && err == nil:
			t.Fatalf("block %d of %d on: %v", first, n, endErr)
		case endErr == nil && (end.offset(int64(first)) < headerSize || end.offset(int64(n)) != sum):
			t.Fatalf("blocks from byte %d to %d", end.offset(int64(first)), end.offset(int64(n)))
		case err != nil:
			return
		}
		for i := int64(first); i <= int64(n); i++ {
			if end.offset(i) != whole.offset(i) {
				t.Fatalf("block %d of %d starts at %d, and at %d", i, n, whole.offset(i), end.offset(i))
			}
		}
	})
}
