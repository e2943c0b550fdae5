// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// A waste is what was fetched of one file of an image, and what of that the
// workload reads if nothing is read ahead, in bytes as the layers have them.
type waste struct {
	name          string
	size          int64 // of the file, as it is on the disk
	fetched, read int64
}

// A place is where the block of a disk that begins at off is in a layer.
type place struct {
	layer  digest.Digest
	at, to int64
}

// wasteOf tells for what files a start fetched what it did. Which requests took
// what was read can be seen by the blocks of the floor, which f knows.
func wasteOf(tb testing.TB, registry *e2e.Registry, f floor, log shape.Log) []waste {
	tb.Helper()
	var m ocispec.Manifest
	fetchManifest(tb, registry, "overlaybd", ocispec.MediaTypeImageManifest, &m)
	volume, layers := &spec.Volume{}, &layerReads{}
	for _, l := range m.Layers {
		volume.Lowers = append(volume.Lowers, spec.Lower{File: registry.Blob(l.Digest)})
	}
	disk, err := image.Open(tb.Context(), volume, layers)
	if err != nil {
		tb.Fatal(err)
	}
	atEnd(tb, disk.Close)
	owners := ownersOf(tb, disk)
	fetched := fetchedOf(log)
	touched := make(map[int64]bool)
	for _, b := range f.Touched {
		touched[b] = true
	}
	all := make(map[string]*waste)
	seen := make(map[place]bool)
	note := func(name string, p place, read bool) {
		w := all[name]
		if w == nil {
			w = &waste{name: name, size: owners.sizes[name]}
			all[name] = w
		}
		if read {
			w.read += p.to - p.at
			return
		}
		for _, r := range fetched[p.layer] {
			w.fetched += max(min(r[1], p.to)-max(r[0], p.at), 0)
		}
	}
	block := make([]byte, floorBlock)
	var last []place
	for off := int64(0); off < disk.Size(); off += floorBlock {
		if _, err := disk.ReadAt(tb.Context(), block, off); err != nil {
			tb.Fatal(err)
		}
		if got := layers.take(); len(got) > 0 {
			last = got
		}
		if !slices.ContainsFunc(block, func(c byte) bool { return c != 0 }) {
			continue
		}
		b := off / floorBlock
		for _, p := range last {
			if !seen[p] {
				seen[p] = true
				note(owners.of(b), p, false)
			}
			q := p
			q.layer += "r"
			if touched[b] && !seen[q] {
				seen[q] = true
				note(owners.of(b), p, true)
			}
		}
	}
	total := &waste{name: "all layers, in whole"}
	for _, l := range m.Layers {
		total.size += l.Size
		for _, r := range fetched[l.Digest] {
			total.fetched += r[1] - r[0]
		}
	}
	index := &waste{name: "indexes of layers", fetched: total.fetched}
	for _, w := range all {
		index.fetched -= w.fetched
	}
	sorted := []waste{*total, *index}
	for _, w := range all {
		sorted = append(sorted, *w)
	}
	slices.SortFunc(sorted, func(a, b waste) int { return cmp.Compare(b.fetched-b.read, a.fetched-a.read) })
	return sorted
}

// fetchedOf returns the parts of each layer that were fetched, each byte once.
func fetchedOf(log shape.Log) map[digest.Digest][][2]int64 {
	all := make(map[digest.Digest][][2]int64)
	for _, q := range log {
		from, to, ok := strings.Cut(strings.TrimPrefix(q.Range, "bytes="), "-")
		i := strings.LastIndex(q.Path, "sha256:")
		if !ok || i < 0 || q.Endpoint != shape.Storage {
			continue
		}
		a, _ := strconv.ParseInt(from, 10, 64)
		b, _ := strconv.ParseInt(to, 10, 64)
		d := digest.Digest(q.Path[i:])
		all[d] = append(all[d], [2]int64{a, b + 1})
	}
	for d, rs := range all {
		slices.SortFunc(rs, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
		var end int64
		for i := range rs {
			rs[i][0] = max(rs[i][0], end)
			end = max(end, rs[i][1])
			rs[i][1] = end
		}
		all[d] = rs
	}
	return all
}

// owners are which files have the blocks of a disk.
type owners struct {
	blocks map[int64]string
	sizes  map[string]int64
}

func (o owners) of(b int64) string { return cmp.Or(o.blocks[b], "metadata") }

func ownersOf(tb testing.TB, disk backend.Volume) owners {
	tb.Helper()
	head := make([]byte, 4)
	if _, err := disk.ReadAt(tb.Context(), head, 1024); err != nil {
		tb.Fatal(err)
	}
	var fs vfs.Reader
	var err error
	if string(head) == "\xe2\xe1\xf5\xe0" { // the magic number of EROFS
		fs, err = erofs.NewReader(tb.Context(), disk)
	} else {
		fs, err = ext4.NewReader(tb.Context(), disk)
	}
	if err != nil {
		tb.Fatal(err)
	}
	o := owners{make(map[int64]string), make(map[string]int64)}
	var walk func(dir vfs.Ino, name string)
	walk = func(dir vfs.Ino, name string) {
		for e, err := range fs.ReadDir(tb.Context(), dir) {
			if err != nil {
				tb.Fatal(err)
			}
			sub := path.Join(name, e.Name)
			switch e.Type {
			case vfs.TypeDirectory:
				walk(e.Ino, sub)
			case vfs.TypeRegular:
				extents, err := fs.Extents(tb.Context(), e.Ino, 0, 1<<40)
				if err != nil {
					tb.Fatal(err)
				}
				for _, x := range extents {
					o.sizes[sub] += x.Len
					for b := x.Off / floorBlock; b < (x.Off+x.Len)/floorBlock; b++ {
						o.blocks[b] = sub
					}
				}
			}
		}
	}
	walk(fs.Root(), "/")
	return o
}

// layerReads opens files whose reads it notes.
type layerReads struct {
	mu  sync.Mutex // guards all
	all []place
}

func (l *layerReads) take() (all []place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, l.all = l.all, nil
	return all
}

func (l *layerReads) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := file.Opener{}.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return layerRead{b, l, digest.NewDigestFromEncoded(digest.SHA256, path.Base(path.Dir(ref.URL)))}, nil
}

type layerRead struct {
	fetcher.Blob
	to     *layerReads
	digest digest.Digest
}

func (l layerRead) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	l.to.mu.Lock()
	l.to.all = append(l.to.all, place{l.digest, off, off + int64(len(p))})
	l.to.mu.Unlock()
	return l.Blob.ReadAt(ctx, p, off)
}

// printWaste prints of which files most was fetched in vain, if WASTE in the
// environment says how many.
func printWaste(w io.Writer, pairs []*pair) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	n, _ := strconv.Atoi(os.Getenv("WASTE"))
	for _, p := range pairs {
		if n == 0 || len(p.waste) == 0 {
			continue
		}
		fmt.Fprintln(tw, "\nnetwork\tworkload\tMB on disk\tkB fetched\tkB read\t of\t")
		for _, f := range p.waste[:min(n, len(p.waste))] {
			fmt.Fprintf(tw, "%s\t%s\t%.2f\t%d\t%d\t %s\t\n", p.network, p.workload, float64(f.size)/1e6, f.fetched/1e3, f.read/1e3, f.name)
		}
	}
	return tw.Flush()
}
