// SPDX-License-Identifier: Apache-2.0

package gzidx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/gzidx"
)

// readGzip inflates z as a Reader does.
func readGzip(z []byte) ([]byte, error) {
	return io.ReadAll(gzidx.NewReader(bytes.NewReader(z), gzidx.Options{}))
}

func TestReaderDetectsDamage(t *testing.T) {
	want := bytes.Repeat([]byte("gzip does not lie. "), 50)
	good := gzipped(t, want, 6)
	two := append(slices.Clone(good), good...)
	edit := func(off int, x byte) []byte {
		z := slices.Clone(two)
		z[off] ^= x
		return z
	}
	for name, z := range map[string][]byte{
		"nothing":            nil,
		"magic":              edit(0, 1),
		"method":             edit(2, 1),
		"flags":              edit(3, 0x80),
		"header CRC":         edit(3, 2), // which is not there
		"CRC":                edit(len(good)-8, 1),
		"size":               edit(len(good)-4, 1),
		"CRC of the second":  edit(len(two)-8, 1),
		"size of the second": edit(len(two)-4, 1),
		"magic of second":    edit(len(good), 1),
		"garbage":            append(slices.Clone(two), "garbage"...),
		"garbage after 0":    append(slices.Clone(two), 0, 0, 1),
		"half a magic":       append(slices.Clone(two), 0x1f),
		"header alone":       append(slices.Clone(two), good[:10]...),
	} {
		r := gzidx.NewReader(bytes.NewReader(z), gzidx.Options{})
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, gzidx.ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
		if n, err := r.WriteIndex(io.Discard); err == nil {
			t.Errorf("%s: an index of %d bytes was written", name, n)
		}
	}
	for n := range len(two) {
		if _, err := readGzip(two[:n]); n != len(good) && !errors.Is(err, gzidx.ErrCorrupt) {
			t.Errorf("cut to %d bytes: got %v, want ErrCorrupt", n, err)
		}
	}
}

// A source that breaks is not a corrupt one.
func TestReaderPassesErrorsOn(t *testing.T) {
	z := gzipped(t, layerLike(t, 1<<20), 6)
	for _, n := range []int{0, 5, 100, len(z) / 2, len(z) - 4} {
		r := gzidx.NewReader(io.MultiReader(bytes.NewReader(z[:n]), failing{}), gzidx.Options{})
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, errTest) || errors.Is(err, gzidx.ErrCorrupt) {
			t.Errorf("broken at byte %d: got %v", n, err)
		}
	}
}

var errTest = errors.New("the cable was cut")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errTest }

// Whatever changes in the gzip file, a read returns what was indexed, or an
// error.
func TestChangedTarget(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	content := sources(t, 1<<20)
	n := len(content) / 2
	z := append(gzipped(t, content[:n], 6), gzipped(t, content[n:], 9)...)
	_, index := build(t, z, gzidx.Options{Span: 64 << 10})
	detected := 0
	for range 40 {
		changed := slices.Clone(z)
		damage(rnd, changed)
		b := open(t, memBlob(changed), index)
		for range 10 {
			off := rnd.IntN(len(content))
			p := make([]byte, rnd.IntN(min(200_000, len(content)-off))+1)
			k, err := b.ReadAt(t.Context(), p, int64(off))
			if !bytes.Equal(p[:k], content[off:off+k]) {
				t.Fatalf("%d bytes at %d: wrong", k, off)
			}
			if err != nil && !errors.Is(err, gzidx.ErrChanged) {
				t.Fatal(err)
			}
			if err != nil {
				detected++
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if detected == 0 {
		t.Error("no change was met with")
	}
}

// damage changes bits, or swaps a part for another.
func damage(rnd *rand.Rand, z []byte) {
	switch rnd.IntN(3) {
	case 0:
		z[rnd.IntN(len(z))] ^= 1 << rnd.IntN(8)
	case 1:
		for range 20 {
			z[rnd.IntN(len(z))] = byte(rnd.Int())
		}
	default:
		copy(z[rnd.IntN(len(z)):], z[rnd.IntN(len(z)):])
	}
}

func TestOtherTarget(t *testing.T) {
	_, index := build(t, gzipped(t, []byte("one"), 6), gzidx.Options{})
	for _, z := range []memBlob{gzipped(t, []byte("three"), 6), nil} {
		b, err := gzidx.Open(t.Context(), z, bytes.NewReader(index), int64(len(index)))
		if !errors.Is(err, gzidx.ErrChanged) || b != nil {
			t.Errorf("file of %d bytes: got %v, %v, want ErrChanged", len(z), b, err)
		}
	}
	b := open(t, memBlob(gzipped(t, []byte("two"), 6)), index)
	if n, err := b.ReadAt(t.Context(), make([]byte, 3), 0); n != 0 || !errors.Is(err, gzidx.ErrChanged) {
		t.Errorf("other file of the same size: got %d, %v, want ErrChanged", n, err)
	}
}

// An index of the reference's tools has no checksums, but a span must end as
// it did.
func TestChangedTargetOfForeignIndex(t *testing.T) {
	content := sources(t, 1<<20)
	z := gzipped(t, content, 6)
	index := foreign(t, z, 64<<10)
	compare(t, open(t, memBlob(z), index), content, 1)
	changed := slices.Clone(z)
	copy(changed[len(z)/2:], z[len(z)/3:len(z)/3+1000])
	b := open(t, memBlob(changed), index)
	n, err := b.ReadAt(t.Context(), make([]byte, len(content)), 0)
	if !errors.Is(err, gzidx.ErrChanged) || n == 0 || n > len(content)*2/3 {
		t.Errorf("read %d bytes, %v; want ErrChanged half way", n, err)
	}
}

// It indexes the first member alone, and what follows must not get lost.
func TestForeignIndexOfTwoMembers(t *testing.T) {
	first := gzipped(t, []byte("first"), 6)
	index := foreign(t, first, 0)
	z := append(slices.Clone(first), gzipped(t, []byte("second"), 6)...)
	binary.LittleEndian.PutUint64(index[33:], uint64(len(z)))
	reseal(index)
	b := open(t, memBlob(z), index)
	if _, err := b.ReadAt(t.Context(), make([]byte, 5), 0); !errors.Is(err, gzidx.ErrChanged) {
		t.Errorf("got %v, want ErrChanged", err)
	}
}
