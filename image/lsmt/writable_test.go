// SPDX-License-Identifier: Apache-2.0

package lsmt_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

var seed = flag.Uint64("seed", 0, "seed of the random model test; 0 picks one")

const volumeSize = 64 << 20

// A layerPath is where a test keeps a writable layer.
type layerPath struct{ data, index string }

func newPath(t testing.TB) layerPath {
	dir := t.TempDir()
	return layerPath{filepath.Join(dir, "data"), filepath.Join(dir, "index")}
}

func (p layerPath) create(t testing.TB, lower *lsmt.Stack, opts lsmt.CreateOptions) *lsmt.Disk {
	t.Helper()
	w, err := lsmt.Create(p.data, p.index, opts)
	if err != nil {
		t.Fatal(err)
	}
	return overlay(t, lower, w)
}

func (p layerPath) open(t testing.TB, lower *lsmt.Stack) *lsmt.Disk {
	t.Helper()
	return overlay(t, lower, p.openWritable(t))
}

func (p layerPath) openWritable(t testing.TB) *lsmt.Writable {
	t.Helper()
	w, err := lsmt.OpenWritable(p.data, p.index, lsmt.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func overlay(t testing.TB, lower *lsmt.Stack, w *lsmt.Writable) *lsmt.Disk {
	t.Helper()
	d, err := lsmt.Overlay(lower, w)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// replayOps does to d what the reference did when it made a golden layer.
func replayOps(t *testing.T, d *lsmt.Disk, ops string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(ops), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var op string
		var off, n, fill int64
		if _, err := fmt.Sscanf(line+" 0", "%s %d %d %d", &op, &off, &n, &fill); err != nil {
			t.Fatalf("operation %q: %v", line, err)
		}
		if err := apply(t.Context(), d, op, off, n, fill); err != nil {
			t.Fatalf("operation %q: %v", line, err)
		}
	}
}

func apply(ctx context.Context, d *lsmt.Disk, op string, off, n, fill int64) error {
	if op == "d" {
		return d.Discard(ctx, off, n)
	}
	p := make([]byte, n)
	for i := range p {
		if x := off + int64(i); op == "w" {
			p[i] = byte(fill + x/512*7 + x%512)
		}
	}
	_, err := d.WriteAt(ctx, p, off)
	return err
}

// TestGoldenWritable reads, commits and writes what the reference wrote.
func TestGoldenWritable(t *testing.T) {
	dir, files := need.Golden(t, "rw/*")
	want := files["rw/a.data"].Volume
	golden := layerPath{filepath.Join(dir, "rw/a.data"), filepath.Join(dir, "rw/a.index")}

	w := golden.openWritable(t)
	var commit bytes.Buffer
	opts := lsmt.CommitOptions{
		UUID:       "11111111-1111-1111-1111-111111111111",
		ParentUUID: "22222222-2222-2222-2222-222222222222",
		UserTag:    "golden tag",
	}
	if err := lsmt.Commit(t.Context(), &commit, w, opts); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(commit.Bytes(), readFile(t, filepath.Join(dir, "rw/a.commit"))) {
		t.Error("our commit differs from the reference's")
	}
	d := overlay(t, nil, w)
	if got := volumeSum(t, d); got != want {
		t.Errorf("golden writable layer reads as %s, want %s", got, want)
	}
	closeAll(t, d)

	for _, sparse := range []bool{false, true} {
		p := newPath(t)
		d := p.create(t, nil, lsmt.CreateOptions{VirtualSize: volumeSize, Sparse: sparse, Direct: true})
		replayOps(t, d, string(readFile(t, filepath.Join(dir, "rw/ops0.txt"))))
		if got := volumeSum(t, d); got != want {
			t.Errorf("sparse=%t: written volume is %s, want %s", sparse, got, want)
		}
		closeAll(t, d)
		w := p.openWritable(t)
		if err := w.Seal(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := volumeSum(t, stackOf(t, readFile(t, p.data))); got != want {
			t.Errorf("sparse=%t: sealed volume is %s, want %s", sparse, got, want)
		}
	}
}

// model is a disk as a byte slice.
type model struct {
	t    *testing.T
	rnd  *rand.Rand
	want []byte
}

// step does one random operation to d and the model.
func (m *model) step(d *lsmt.Disk) {
	const sectors = 1 << 11
	off := m.rnd.Int64N(sectors)
	n := 1 + m.rnd.Int64N(min(64, sectors-off))
	off, n = off*lsmt.SectorSize, n*lsmt.SectorSize
	part := m.want[off : off+n]
	switch op := m.rnd.IntN(10); {
	case op < 5:
		for i := range part {
			part[i] = byte(m.rnd.Uint32())
		}
		if _, err := d.WriteAt(m.t.Context(), part, off); err != nil {
			m.t.Fatal(err)
		}
	case op < 7:
		clear(part)
		if err := d.Discard(m.t.Context(), off, n); err != nil {
			m.t.Fatal(err)
		}
	case op < 8:
		if err := d.Sync(m.t.Context()); err != nil {
			m.t.Fatal(err)
		}
	default:
		got := make([]byte, n)
		if _, err := d.ReadAt(m.t.Context(), got, off); err != nil || !bytes.Equal(got, part) {
			m.t.Fatalf("read of %d at %d differs from what was written (%v)", n, off, err)
		}
	}
}

func (m *model) check(v interface {
	ReadAt(context.Context, []byte, int64) (int, error)
}, what string,
) {
	m.t.Helper()
	got := make([]byte, len(m.want))
	if _, err := v.ReadAt(m.t.Context(), got, 0); err != nil && !errors.Is(err, io.EOF) {
		m.t.Fatalf("%s: %v", what, err)
	}
	if !bytes.Equal(got, m.want) {
		m.t.Fatalf("%s differs from what was written", what)
	}
}

// TestModel compares a disk with a byte slice through random operations,
// reopening, sealing and committing, generation upon generation.
func TestModel(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed=%d", s)
	for _, sparse := range []bool{false, true} {
		t.Run(fmt.Sprintf("sparse=%t", sparse), func(t *testing.T) {
			m := &model{t: t, rnd: rand.New(rand.NewPCG(s, 1)), want: make([]byte, 1<<20)}
			var layers [][]byte
			for range 4 {
				layers = append(layers, m.generation(layers, sparse))
			}
			var flat bytes.Buffer
			stack := stackOf(t, layers...)
			if err := lsmt.Commit(t.Context(), &flat, stack, lsmt.CommitOptions{}); err != nil {
				t.Fatal(err)
			}
			m.check(stackOf(t, flat.Bytes()), "flattened stack")
		})
	}
}

// generation writes one more layer over layers and returns it sealed.
func (m *model) generation(layers [][]byte, sparse bool) []byte {
	lower := func() *lsmt.Stack {
		if len(layers) == 0 {
			return nil
		}
		return stackOf(m.t, layers...)
	}
	p := newPath(m.t)
	opts := lsmt.CreateOptions{Sparse: sparse}
	if len(layers) == 0 {
		opts.VirtualSize = int64(len(m.want))
	}
	d := p.create(m.t, lower(), opts)
	for range 3 {
		for range 200 {
			m.step(d)
		}
		closeAll(m.t, d)
		d = p.open(m.t, lower())
		m.check(d, "reopened disk")
	}
	closeAll(m.t, d)
	w := p.openWritable(m.t)
	var committed bytes.Buffer
	if err := lsmt.Commit(m.t.Context(), &committed, w, lsmt.CommitOptions{}); err != nil {
		m.t.Fatal(err)
	}
	if err := w.Seal(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	sealed := readFile(m.t, p.data)
	m.check(stackOf(m.t, append(layers[:len(layers):len(layers)], sealed)...), "sealed layer")
	m.check(stackOf(m.t, append(layers[:len(layers):len(layers)], committed.Bytes())...), "committed layer")
	return sealed
}

// TestConcurrentWrites has writers of their own sectors beside readers of all.
func TestConcurrentWrites(t *testing.T) {
	d := newPath(t).create(t, nil, lsmt.CreateOptions{VirtualSize: 1 << 20})
	defer closeAll(t, d)
	var wg sync.WaitGroup
	for k := range int64(8) {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(k + 1)}, 4096)
			for i := range int64(16) {
				off := (i*8 + k) * 4096
				if _, err := d.WriteAt(t.Context(), p, off); err != nil {
					t.Error(err)
				}
				if err := d.Sync(t.Context()); err != nil {
					t.Error(err)
				}
				got := make([]byte, 4096)
				if _, err := d.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, p) {
					t.Errorf("read at %d: not what was just written (%v)", off, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestPowerCut cuts the files at every record that was not yet synced when
// the power went, and expects all that was.
func TestPowerCut(t *testing.T) {
	p := newPath(t)
	d := p.create(t, nil, lsmt.CreateOptions{VirtualSize: 1 << 20})
	synced := bytes.Repeat([]byte("synced  "), 512/8)
	write := func(p []byte, off int64) {
		if _, err := d.WriteAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
	write(synced, 0)
	if err := d.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	size := func(name string) int64 {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	dataSize, indexSize := size(p.data), size(p.index)
	for i := range int64(4) {
		write(bytes.Repeat([]byte{byte(i)}, 1024), 512*i)
	}
	closeAll(t, d)
	data, index := readFile(t, p.data), readFile(t, p.index)

	for cutData := dataSize; cutData <= int64(len(data)); cutData += 256 {
		for cutIndex := indexSize; cutIndex <= int64(len(index)); cutIndex += 8 {
			q := newPath(t)
			if err := errors.Join(os.WriteFile(q.data, data[:cutData], 0o600), os.WriteFile(q.index, index[:cutIndex], 0o600)); err != nil {
				t.Fatal(err)
			}
			d := q.open(t, nil)
			got := make([]byte, 512)
			if _, err := d.ReadAt(t.Context(), got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, synced) && !bytes.Equal(got, make([]byte, 512)) {
				t.Fatalf("cut at %d and %d: neither the synced bytes nor the later ones", cutData, cutIndex)
			}
			if cutIndex == indexSize && !bytes.Equal(got, synced) {
				t.Fatalf("cut at %d: synced bytes are lost", cutData)
			}
			write := bytes.Repeat([]byte("after it"), 512/8)
			if _, err := d.WriteAt(t.Context(), write, 4096); err != nil {
				t.Fatal(err)
			}
			closeAll(t, d)
			d = q.open(t, nil)
			if _, err := d.ReadAt(t.Context(), got, 4096); err != nil || !bytes.Equal(got, write) {
				t.Fatalf("cut at %d and %d: write after recovery is lost (%v)", cutData, cutIndex, err)
			}
			closeAll(t, d)
		}
	}
}

// TestSparseOfReference opens a sparse layer with the empty index file that
// the reference leaves: what is data on disk is mapped.
func TestSparseOfReference(t *testing.T) {
	p := newPath(t)
	d := p.create(t, nil, lsmt.CreateOptions{VirtualSize: 1 << 20, Sparse: true})
	want := bytes.Repeat([]byte("data"), 1024)
	if _, err := d.WriteAt(t.Context(), want, 8192); err != nil {
		t.Fatal(err)
	}
	closeAll(t, d)
	if err := os.Truncate(p.index, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from our own index
		d = p.open(t, nil)
		got := make([]byte, len(want))
		if _, err := d.ReadAt(t.Context(), got, 8192); err != nil || !bytes.Equal(got, want) {
			t.Errorf("data is lost (%v)", err)
		}
		closeAll(t, d)
	}
}

func TestCreateLeavesNothingBehind(t *testing.T) {
	p := newPath(t)
	if err := os.WriteFile(p.index, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lsmt.Create(p.data, p.index, lsmt.CreateOptions{VirtualSize: 512}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want fs.ErrExist", err)
	}
	if _, err := os.Stat(p.data); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("data file: %v, want it gone", err)
	}
	if string(readFile(t, p.index)) != "mine" {
		t.Error("the file that was in the way was changed")
	}
}

func TestWritableRefuses(t *testing.T) {
	good := newPath(t)
	closeAll(t, good.create(t, nil, lsmt.CreateOptions{VirtualSize: 1 << 20}))
	data, index := readFile(t, good.data), readFile(t, good.index)
	with := func(b []byte, off int, v byte) []byte {
		b = bytes.Clone(b)
		b[off] = v
		return b
	}
	record := func(b ...byte) []byte { return append(bytes.Clone(index), append(b, make([]byte, 16-len(b))...)...) }
	for _, tc := range []struct {
		name        string
		data, index []byte
	}{
		{"empty data", nil, index},
		{"short data header", data[:100], index},
		{"no magic", with(data, 0, 'X'), index},
		{"index file as data", index, index},
		{"data file as index", data, data},
		{"index offset", data, with(index, 33, 1)},
		{"no size limit", with(data, 54, 0xff), with(index, 54, 0xff)},
		{"record of no length", data, record(1, 0, 0, 0, 0, 0, 0, 0, 8)},
		{"record into the header", data, record(1, 0, 0, 0, 0, 0, 4, 0, 1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPath(t)
			if err := errors.Join(os.WriteFile(p.data, tc.data, 0o600), os.WriteFile(p.index, tc.index, 0o600)); err != nil {
				t.Fatal(err)
			}
			w, err := lsmt.OpenWritable(p.data, p.index, lsmt.OpenOptions{})
			if w != nil || !errors.Is(err, lsmt.ErrCorrupt) || !strings.Contains(err.Error(), p.data) {
				t.Errorf("got %v, %v; want ErrCorrupt naming the file", w, err)
			}
		})
	}
}

func TestDiskRefusesWhatIsOutside(t *testing.T) {
	d := newPath(t).create(t, nil, lsmt.CreateOptions{VirtualSize: 4096})
	for _, c := range []struct{ off, n int64 }{{4096, 512}, {-512, 512}, {1, 512}, {0, 511}, {3584, 1024}} {
		if _, err := d.WriteAt(t.Context(), make([]byte, c.n), c.off); err == nil {
			t.Errorf("write of %d at %d was accepted", c.n, c.off)
		}
		if err := d.Discard(t.Context(), c.off, c.n); err == nil {
			t.Errorf("discard of %d at %d was accepted", c.n, c.off)
		}
	}
	closeAll(t, d)
	if _, err := d.WriteAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after Close: %v, want fs.ErrClosed", err)
	}
	if _, err := d.ReadAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after Close: %v, want fs.ErrClosed", err)
	}
}

// BenchmarkRandomWrite4K shows that inserts do not slow down as the index
// grows: 100,000 of them into one layer.
func BenchmarkRandomWrite4K(b *testing.B) {
	d := newPath(b).create(b, nil, lsmt.CreateOptions{VirtualSize: 1 << 30})
	defer closeAll(b, d)
	rnd := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.WriteAt(b.Context(), p, rnd.Int64N(1<<18)*4096); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzOpenWritable(f *testing.F) {
	p := newPath(f)
	d := p.create(f, nil, lsmt.CreateOptions{VirtualSize: 1 << 20})
	if _, err := d.WriteAt(f.Context(), make([]byte, 1024), 512); err != nil {
		f.Fatal(err)
	}
	closeAll(f, d)
	f.Add(readFile(f, p.data), readFile(f, p.index))
	f.Fuzz(func(t *testing.T, data, index []byte) {
		p := newPath(t)
		if err := errors.Join(os.WriteFile(p.data, data, 0o600), os.WriteFile(p.index, index, 0o600)); err != nil {
			t.Fatal(err)
		}
		w, err := lsmt.OpenWritable(p.data, p.index, lsmt.OpenOptions{})
		if err != nil {
			return
		}
		d, err := lsmt.Overlay(nil, w)
		if err != nil {
			closeAll(t, w)
			return
		}
		_, _ = d.ReadAt(t.Context(), make([]byte, 1<<16), 0) // any error, no panic
		closeAll(t, d)
	})
}
