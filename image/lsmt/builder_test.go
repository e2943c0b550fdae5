// SPDX-License-Identifier: Apache-2.0

package lsmt_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

// build makes a layer over others by calling fill.
func build(t testing.TB, below [][]byte, opts lsmt.BuilderOptions, fill func(*lsmt.Builder)) []byte {
	t.Helper()
	var lower *lsmt.Stack
	if len(below) > 0 {
		lower = stackOf(t, below...)
	}
	opts.TempDir = t.TempDir()
	var out bytes.Buffer
	b, err := lsmt.Build(&out, lower, opts)
	if err != nil {
		t.Fatal(err)
	}
	fill(b)
	if err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeAll(t, b)
	if left, err := os.ReadDir(opts.TempDir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	return out.Bytes()
}

// TestBuilderModel compares layers that are made in one pass with a byte slice
// through random operations, one layer upon the other.
func TestBuilderModel(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed=%d", s)
	m := &model{t: t, rnd: rand.New(rand.NewPCG(s, 2)), want: make([]byte, 1<<20)}
	var layers [][]byte
	for range 4 {
		opts := lsmt.BuilderOptions{}
		if len(layers) == 0 {
			opts.VirtualSize = int64(len(m.want))
		}
		layers = append(layers, build(t, layers, opts, m.fill))
		m.check(stackOf(t, layers...), "built stack")
	}
}

// fill does random operations to b and the model.
func (m *model) fill(b *lsmt.Builder) {
	content := make([]bool, len(m.want)/lsmt.SectorSize)
	for range 300 {
		lba := m.rnd.IntN(len(content))
		n := 1 + m.rnd.IntN(min(64, len(content)-lba))
		off, part := int64(lba)*lsmt.SectorSize, m.want[lba*lsmt.SectorSize:(lba+n)*lsmt.SectorSize]
		op := m.rnd.IntN(10)
		if op < 8 {
			for i := range content[lba : lba+n] {
				content[lba+i] = op < 4
			}
		}
		var err error
		switch {
		case op < 7:
			for i := range part {
				part[i] = byte(m.rnd.Uint32())
			}
			write := b.WriteAt
			if op < 4 {
				write = b.WriteContent
			}
			_, err = write(m.t.Context(), part, off)
		case op < 8:
			clear(part)
			err = b.Discard(m.t.Context(), off, int64(len(part)))
		default:
			m.checkBuilder(b, part, off, slices.Contains(content[lba:lba+n], true))
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
}

// checkBuilder reads what was written, unless it holds content, which must not
// be read as anything else.
func (m *model) checkBuilder(b *lsmt.Builder, want []byte, off int64, content bool) {
	m.t.Helper()
	got := make([]byte, len(want))
	_, err := b.ReadAt(m.t.Context(), got, off)
	switch {
	case content && (err == nil || !strings.Contains(err.Error(), "cannot be read")):
		m.t.Fatalf("content at %d was read: %v", off, err)
	case !content && (err != nil || !bytes.Equal(got, want)):
		m.t.Fatalf("read of %d at %d differs from what was written (%v)", len(want), off, err)
	}
}

// TestBuilderOrder: content comes first, as it was written and before the
// layer is finished; what was written again is there once.
func TestBuilderOrder(t *testing.T) {
	sector := func(c byte) []byte { return bytes.Repeat([]byte{c}, lsmt.SectorSize) }
	ctx := t.Context()
	layer := build(t, nil, lsmt.BuilderOptions{VirtualSize: 1 << 20}, func(b *lsmt.Builder) {
		for _, w := range []struct {
			write func(context.Context, []byte, int64) (int, error)
			c     byte
			lba   int64
		}{
			{b.WriteAt, 'm', 9}, {b.WriteContent, 'b', 5}, {b.WriteAt, 'M', 9}, {b.WriteContent, 'a', 1}, {b.WriteAt, 'n', 0},
		} {
			if _, err := w.write(ctx, sector(w.c), w.lba*lsmt.SectorSize); err != nil {
				t.Fatal(err)
			}
		}
	})
	data := layer[4096 : 4096+4*lsmt.SectorSize]
	if want := slices.Concat(sector('b'), sector('a'), sector('n'), sector('M')); !bytes.Equal(data, want) {
		t.Errorf("sectors begin with %c %c %c %c", data[0], data[512], data[1024], data[1536])
	}
}

// TestBuilderNames: the layer is called and as large as was asked for.
func TestBuilderNames(t *testing.T) {
	const id, parent = "11111111-2222-3333-4444-555555555555", "99999999-8888-7777-6666-555555555555"
	names := lsmt.CommitOptions{UUID: id, ParentUUID: parent, UserTag: "tag"}
	bottom := build(t, nil, lsmt.BuilderOptions{VirtualSize: 1 << 20}, func(*lsmt.Builder) {})
	top := build(t, [][]byte{bottom}, lsmt.BuilderOptions{CommitOptions: names}, func(*lsmt.Builder) {})
	l := openLayer(t, top)
	if h, err := l.Header(t.Context()); err != nil || h.UUID != id || h.ParentUUID != parent || h.UserTag != "tag" || h.VirtualSize != 1<<20 {
		t.Errorf("the layer says %+v, %v", h, err)
	}
	closeAll(t, l)
}

// TestBuilderRefuses what no layer can hold, and passes on what goes wrong
// below it.
func TestBuilderRefuses(t *testing.T) {
	if _, err := lsmt.Build(&bytes.Buffer{}, nil, lsmt.BuilderOptions{VirtualSize: 100}); err == nil {
		t.Error("a size of 100 bytes was taken")
	}
	if _, err := lsmt.Build(&bytes.Buffer{}, nil, lsmt.BuilderOptions{CommitOptions: lsmt.CommitOptions{UUID: "x"}}); err == nil {
		t.Error("a UUID of one letter was taken")
	}
	broken := errors.New("line cut")
	w := &cutWriter{left: 4096 + 512, err: broken}
	b, err := lsmt.Build(w, nil, lsmt.BuilderOptions{VirtualSize: 1 << 20, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, b)
	for _, at := range []struct{ off, n int64 }{{1 << 20, 512}, {0, 100}, {-512, 512}, {100, 512}} {
		_, err1 := b.WriteContent(t.Context(), make([]byte, at.n), at.off)
		_, err2 := b.WriteAt(t.Context(), make([]byte, at.n), at.off)
		if err3 := b.Discard(t.Context(), at.off, at.n); err1 == nil || err2 == nil || err3 == nil {
			t.Errorf("%d bytes at %d: %v, %v, %v", at.n, at.off, err1, err2, err3)
		}
	}
	if _, err := b.WriteContent(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteContent(t.Context(), make([]byte, 512), 512); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if err := b.Finish(t.Context()); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

// A cutWriter takes left bytes.
type cutWriter struct {
	left int
	err  error
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return 0, w.err
	}
	w.left -= len(p)
	return len(p), nil
}
