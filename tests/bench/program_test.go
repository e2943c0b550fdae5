// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"text/tabwriter"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/loader"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
)

// BenchmarkProgram starts programs in the block images of BenchmarkColdStart
// with nothing around them: no containerd, no daemons, no pull. What is fetched
// is nearly the same, in a second. WASTE in the environment tells for what.
func BenchmarkProgram(b *testing.B) {
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nnetwork\tworkload\topen s\tready s\trequests\tconnections\tMB\tof floor\tchain\tround trips\t")
	for _, network := range shape.Profiles {
		b.Run(network.Name, func(b *testing.B) {
			for _, w := range workloads {
				b.Run(w.name, func(b *testing.B) {
					p := &pair{network: network.Name, workload: w.name}
					reg := converted(b, w.image(b))
					p.floor = floorOf(b, reg, w)
					proxy := shaped(b, reg, network)
					var m ocispec.Manifest
					fetchManifest(b, reg, "overlaybd", ocispec.MediaTypeImageManifest, &m)
					for b.Loop() {
						p.block = append(p.block, startProgram(b, proxy, m, w.command))
					}
					r := median(p.block)
					s, chain := r.summary(), r.log.Chain()
					fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%d\t%.1f\t%.2f\t%d\t%d\t\n", p.network, p.workload, seconds(r.pulled.Sub(r.begun)), seconds(r.took()),
						s.Requests, s.Connections, float64(s.Bytes)/1e6, p.overFloor(), len(chain), chain.Trips())
					if os.Getenv("CHAIN") != "" {
						for _, q := range chain {
							b.Log(q.Start.Sub(r.begun).Milliseconds(), q.End.Sub(q.Start).Milliseconds(), q.Trips, filepath.Base(q.Path)[:min(20, len(filepath.Base(q.Path)))], q.Range)
						}
					}
					p.waste = wasteOf(b, reg, p.floor, r.log)
					if err := printWaste(os.Stdout, []*pair{p}); err != nil {
						b.Error(err)
					}
				})
			}
		})
	}
	if err := tw.Flush(); err != nil {
		b.Error(err)
	}
}

var blockSize, _ = strconv.Atoi(os.Getenv("BLOCK"))

// startProgram runs a command in the image of m, of which there is nothing here.
func startProgram(tb testing.TB, p *shape.Proxy, m ocispec.Manifest, command []string) (s start) {
	tb.Helper()
	turn := &scope{TB: tb}
	defer turn.end()
	blocks, err := cache.Open(cache.Options{Dir: filepath.Join(turn.TempDir(), "cache"), MinFree: -1, BlockSize: blockSize})
	if err != nil {
		tb.Fatal(err)
	}
	atEnd(turn, blocks.Close)
	remote := registry.New(registry.Options{PlainHTTP: []string{p.Host()}})
	atEnd(turn, remote.Close)
	volume := &spec.Volume{RepoBlobURL: "http://" + p.Host() + "/v2/image/blobs"}
	for _, l := range m.Layers {
		volume.Lowers = append(volume.Lowers, spec.Lower{Digest: l.Digest, Size: l.Size})
	}
	p.Reset()
	s.begun = time.Now()
	img, err := image.Open(tb.Context(), volume, blocks.Opener(limit.New(remote, limit.Options{PerHost: 128})))
	if err != nil {
		tb.Fatal(err)
	}
	s.pulled = time.Now()
	disk := loader.Wrap(img, loader.Options{})
	atEnd(turn, disk.Close)
	out := output{first: func() { s.first, s.log = time.Now(), p.Log() }}
	root, _ := rootOf(turn, disk)
	out.chroot(turn, root, command)
	return s
}
