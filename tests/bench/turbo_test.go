// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A form is what the convertor makes of an image, with its flags for that.
type form struct {
	tag   string
	flags []string
}

// forms are block images of their own, and such as leave the files where they
// are, in the compressed layers of the original image.
var forms = []form{
	{"native", []string{"-o", "native"}},
	{"turbo-ext4", []string{"--turboOCI", "turbo-ext4", "--fstype", "ext4"}},
	{"turbo-erofs", []string{"--turboOCI", "turbo-erofs", "--fstype", "erofs"}},
}

// turboNetwork is a thin link to a registry that is not far.
var turboNetwork = shape.Profile{Name: "turbo", RTT: 20 * time.Millisecond, Rate: 200e6 / 8}

// demo is the image and the program of make demo.
var demo = workload{"demo", e2e.Debian, []string{"python3", "-c", "print('ready')"}}

// BenchmarkTurbo starts containers of images whose files stay in their original
// layers, on nodes that have nothing of them, in turns with native block images.
// CONVERT is for the native ones alone.
func BenchmarkTurbo(b *testing.B) {
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nworkload\tform\tpull s\tready s\tof native\tagain s\trequests\tchain\tMB fetched\tof native's\tindex %\tmetadata %\tstored %\tdaemons CPU s\tdaemons MB\teach s\t")
	for _, w := range append([]workload{demo}, workloads...) {
		b.Run(w.name, func(b *testing.B) {
			registry := inForms(b, w.image(b))
			proxy := shaped(b, registry, turboNetwork)
			all := make([][]start, len(forms))
			for b.Loop() {
				for i, f := range forms {
					all[i] = append(all[i], coldStart(b, proxy, f.tag, w.command))
				}
			}
			var pairs []*pair
			for i, f := range forms {
				pairs = append(pairs, &pair{network: f.tag, workload: w.name, block: all[i]})
				printTurbo(tw, w, f, all[i], median(all[0]), addedTo(b, registry, f.tag))
				if i > 0 {
					b.ReportMetric(float64(median(all[i]).took())/float64(median(all[0]).took()), f.tag+"-of-native")
				}
			}
			if err := printPhases(os.Stdout, pairs); err != nil {
				b.Error(err)
			}
		})
	}
	if err := tw.Flush(); err != nil {
		b.Error(err)
	}
}

func printTurbo(w io.Writer, of workload, f form, all []start, native start, a added) {
	m := median(all)
	s := m.summary()
	_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.2f\t%s\t%d\t%d\t%.1f\t%.2f\t%.2f\t%.2f\t%.2f\t%s\t%d\t%s\t\n", of.name, f.tag,
		seconds(m.pulled.Sub(m.begun)), seconds(m.took()), m.took().Seconds()/native.took().Seconds(), seconds(m.again),
		s.Requests, len(m.log.Chain()), float64(s.Bytes)/1e6, float64(s.Bytes)/float64(native.summary().Bytes),
		100*a.of(a.index), 100*a.of(a.metadata), 100*a.of(a.stored), seconds(m.daemons.cpu()), m.daemons.peak>>20, each(all))
}

// generation is to change with what the convertor makes for forms: those that an
// earlier one made are then made anew.
const generation = "2"

// inForms returns a registry with the image in all its forms, which an earlier
// run may have made.
func inForms(tb testing.TB, img e2e.Image) *e2e.Registry {
	tb.Helper()
	name := "forms-" + generation + "-" + strings.TrimPrefix(conversion(img), "converted-")
	storage := need.Cached(tb, name, func(dir string) {
		tb.Log("converting", filepath.Base(img.Dir), "once")
		registry := e2e.OpenRegistry(tb, dir)
		registry.Push(tb, img, "image", "overlayfs")
		for i, f := range forms {
			flags := f.flags
			if i == 0 {
				flags = append(convertFlags(), flags...)
			}
			convertTo(tb, registry, flags...)
		}
	})
	inMemory(tb, storage)
	return e2e.OpenRegistry(tb, storage)
}

// An added is what a turbo image adds to the layers of the original, in bytes:
// as they are stored in the registry, and as the files have them.
type added struct {
	layers          int64 // of the original, compressed
	stored          int64
	index, metadata int64
}

func (a added) of(n int64) float64 { return float64(n) / float64(cmp.Or(a.layers, 1)) }

// addedTo returns what the image with that tag adds, nothing if it is no turbo
// image.
func addedTo(tb testing.TB, registry *e2e.Registry, tag string) (a added) {
	tb.Helper()
	if !strings.HasPrefix(tag, "turbo") {
		return a
	}
	var original, m ocispec.Manifest
	fetchManifest(tb, registry, "overlayfs", ocispec.MediaTypeImageManifest, &original)
	fetchManifest(tb, registry, tag, ocispec.MediaTypeImageManifest, &m)
	for _, l := range original.Layers {
		a.layers += l.Size
	}
	for _, l := range m.Layers {
		a.stored += l.Size
		if err := a.count(registry, l.Digest); err != nil {
			tb.Fatal(err)
		}
	}
	return a
}

// count adds the files of a turbo layer.
func (a *added) count(registry *e2e.Registry, layer digest.Digest) (err error) {
	f, err := os.Open(registry.Blob(layer))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case strings.HasSuffix(h.Name, ".fs.meta"):
			a.metadata += h.Size
		default: // the index, and a mark without content
			a.index += h.Size
		}
	}
}
