// SPDX-License-Identifier: Apache-2.0

package lsmt_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
)

const targetVolume = 1 << 20

// targetModel is a volume whose layers map content into targets.
type targetModel struct {
	t    *testing.T
	rnd  *rand.Rand
	want []byte
}

// layer makes a layer with a target over others, and changes the model alike.
func (m *targetModel) layer(below ...*lsmt.Layer) (layer, target []byte) {
	target = make([]byte, 64<<10+m.rnd.IntN(lsmt.SectorSize)) // it may lack the last padding
	for i := range target {
		target[i] = byte(m.rnd.Uint32())
	}
	opts := lsmt.BuilderOptions{VirtualSize: targetVolume, Target: true, TempDir: m.t.TempDir()}
	var lower *lsmt.Stack
	if len(below) > 0 {
		var err error
		if lower, err = lsmt.Merge(below); err != nil {
			m.t.Fatal(err)
		}
	}
	var out bytes.Buffer
	b, err := lsmt.Build(&out, lower, opts)
	if err != nil {
		m.t.Fatal(err)
	}
	for range 200 {
		m.step(b, target)
	}
	if err := b.Finish(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	closeAll(m.t, b)
	return out.Bytes(), target
}

func (m *targetModel) step(b *lsmt.Builder, target []byte) {
	const sectors = 48 << 10 / lsmt.SectorSize
	off := int64(m.rnd.IntN(targetVolume/lsmt.SectorSize-sectors)) * lsmt.SectorSize
	n := int64(1+m.rnd.IntN(sectors)) * lsmt.SectorSize
	part := m.want[off : off+n]
	var err error
	switch m.rnd.IntN(4) {
	case 0:
		err = b.Discard(m.t.Context(), off, n)
		clear(part)
	case 1:
		for i := range part {
			part[i] = byte(m.rnd.Uint32())
		}
		_, err = b.WriteAt(m.t.Context(), part, off)
	default:
		all := append(bytes.Clone(target), make([]byte, lsmt.SectorSize)...)
		at := (int64(len(target)-int(n)) + lsmt.SectorSize - 1) / lsmt.SectorSize * lsmt.SectorSize
		at -= int64(m.rnd.IntN(int(at/lsmt.SectorSize)+1)) * lsmt.SectorSize
		copy(part, all[at:])
		err = b.MapContent(m.t.Context(), off, n, at)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func openTarget(t testing.TB, layer, target []byte) *lsmt.Layer {
	t.Helper()
	l, err := lsmt.OpenWithTarget(t.Context(), newBlob(layer), newBlob(target))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestTarget: layers that map content, stacked, merged into one and committed,
// are the volume that was written.
func TestTarget(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed=%d", s)
	m := &targetModel{t: t, rnd: rand.New(rand.NewPCG(s, 3)), want: make([]byte, targetVolume)}
	var layers []*lsmt.Layer
	for range 3 {
		layer, target := m.layer(layers...)
		layers = append(layers, openTarget(t, layer, target))
	}
	stack, err := lsmt.Merge(layers)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, stack)
	whole := func(v interface {
		ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	},
	) []byte {
		got := make([]byte, targetVolume)
		if _, err := v.ReadAt(t.Context(), got, 0); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return got
	}
	if !bytes.Equal(whole(stack), m.want) {
		t.Error("the stack is not what was written")
	}
	var flat bytes.Buffer
	if err := lsmt.Commit(t.Context(), &flat, stack, lsmt.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(whole(stackOf(t, flat.Bytes())), m.want) {
		t.Error("the layer merged of them is not what was written")
	}
}

// TestTargetExpect: what is expected of a volume is expected of targets, too.
func TestTargetExpect(t *testing.T) {
	target := bytes.Repeat([]byte("x"), 64<<10)
	layer := build(t, nil, lsmt.BuilderOptions{VirtualSize: targetVolume, Target: true}, func(b *lsmt.Builder) {
		if err := b.MapContent(t.Context(), 4096, 32<<10, 512); err != nil {
			t.Fatal(err)
		}
	})
	far := &farBlob{memBlob: newBlob(target)}
	l, err := lsmt.OpenWithTarget(t.Context(), newBlob(layer), far)
	if err != nil {
		t.Fatal(err)
	}
	s, err := lsmt.Merge([]*lsmt.Layer{l})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, s)
	far.forget()
	if !s.Far() || stackOf(t, build(t, nil, lsmt.BuilderOptions{VirtualSize: 4096}, func(*lsmt.Builder) {})).Far() {
		t.Error("far is not what has a far target")
	}
	if err := s.Expect(t.Context(), 4096, 8192); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8192)
	if _, err := s.ReadAt(t.Context(), p, 4096); err != nil || !bytes.Equal(p, target[:8192]) {
		t.Errorf("what was expected cannot be read: %v", err)
	}
	if _, err := s.ReadAt(t.Context(), p, 16<<10); !errors.Is(err, errUnexpected) {
		t.Errorf("more than that was expected: %v", err)
	}
}

// TestTargetRefused: records that point nowhere are refused when the layer is
// opened.
func TestTargetRefused(t *testing.T) {
	target := make([]byte, 64<<10)
	layer := build(t, nil, lsmt.BuilderOptions{VirtualSize: targetVolume, Target: true}, func(b *lsmt.Builder) {
		if err := b.MapContent(t.Context(), 4096, 4096, 60<<10); err != nil {
			t.Fatal(err)
		}
	})
	record := len(layer) - 4096 - 16 // the only one, right before the trailer
	for name, change := range map[string]func(b []byte){
		"another tag": func(b []byte) { b[record+15] = 2 },
		"past its end": func(b []byte) {
			binary.LittleEndian.PutUint64(b[record+8:], 1<<56|(60<<10/512+1))
		},
		"far past its end": func(b []byte) {
			binary.LittleEndian.PutUint64(b[record+8:], 1<<56|(1<<55-1))
		},
		"no length":   func(b []byte) { binary.LittleEndian.PutUint64(b[record:], 8) },
		"the header":  func(b []byte) { binary.LittleEndian.PutUint64(b[record+8:], 0) },
		"past volume": func(b []byte) { binary.LittleEndian.PutUint64(b[record:], 1<<50-2|16<<50) },
	} {
		bad := bytes.Clone(layer)
		change(bad)
		if l, err := lsmt.OpenWithTarget(t.Context(), newBlob(bad), newBlob(target)); !errors.Is(err, lsmt.ErrCorrupt) {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
	if l, err := lsmt.OpenWithTarget(t.Context(), newBlob(layer), newBlob(target[:60<<10])); !errors.Is(err, lsmt.ErrCorrupt) {
		t.Errorf("a shorter target: %v, %v", l, err)
	}
}

// TestMapContentRefused: only a layer with a target has content mapped.
func TestMapContentRefused(t *testing.T) {
	build(t, nil, lsmt.BuilderOptions{VirtualSize: targetVolume}, func(b *lsmt.Builder) {
		if err := b.MapContent(t.Context(), 0, 512, 0); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("mapped without a target: %v", err)
		}
	})
	build(t, nil, lsmt.BuilderOptions{VirtualSize: targetVolume, Target: true}, func(b *lsmt.Builder) {
		for _, c := range [][3]int64{{0, 512, 1}, {0, 512, -512}, {0, 100, 0}, {256, 512, 0}, {targetVolume, 512, 0}} {
			if err := b.MapContent(t.Context(), c[0], c[1], c[2]); err == nil {
				t.Errorf("mapped %v", c)
			}
		}
	})
}

// TestDiscardNothing: what reads as zeros anyway takes no record, and what does
// not is hidden.
func TestDiscardNothing(t *testing.T) {
	bottom := build(t, nil, lsmt.BuilderOptions{VirtualSize: targetVolume}, func(b *lsmt.Builder) {
		if _, err := b.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4096), 8192); err != nil {
			t.Fatal(err)
		}
	})
	top := build(t, [][]byte{bottom}, lsmt.BuilderOptions{}, func(b *lsmt.Builder) {
		for _, off := range []int64{0, 8192, 64 << 10} {
			if err := b.Discard(t.Context(), off, 4096); err != nil {
				t.Fatal(err)
			}
		}
	})
	var lbas []uint64
	for m := range openLayer(t, top).Mappings() {
		lbas = append(lbas, m.LBA)
	}
	if len(lbas) != 1 || lbas[0] != 8192/lsmt.SectorSize {
		t.Errorf("records at %v, want one at 16", lbas)
	}
}

// FuzzOpenWithTarget: no layer makes a reader crash, or read past what there
// is.
func FuzzOpenWithTarget(f *testing.F) {
	target := bytes.Repeat([]byte("target"), 2000)
	layer := build(f, nil, lsmt.BuilderOptions{VirtualSize: targetVolume, Target: true}, func(b *lsmt.Builder) {
		_, err := b.WriteAt(f.Context(), make([]byte, 4096), 0)
		if err = errors.Join(err, b.MapContent(f.Context(), 8192, 4096, 512)); err != nil {
			f.Fatal(err)
		}
	})
	f.Add(layer)
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := lsmt.OpenWithTarget(t.Context(), newBlob(data), newBlob(target))
		if err != nil {
			return
		}
		s, err := lsmt.Merge([]*lsmt.Layer{l})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p := make([]byte, 4096)
		for m := range l.Mappings() {
			_, err := s.ReadAt(t.Context(), p, int64(m.LBA)*lsmt.SectorSize)
			if err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("sector %d cannot be read: %v", m.LBA, err)
			}
		}
	})
}

var _ fetcher.Expecter = (*farBlob)(nil)
