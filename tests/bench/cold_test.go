// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"cmp"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
)

// A pair is the starts of one workload on one network, in turns.
type pair struct {
	network, workload string
	floor             floor
	plain, block      []start
	waste             []waste // of the median block
}

// BenchmarkColdStart starts real containers on nodes that have nothing of the
// image, over networks: after a plain pull, and from a block image, in turns.
// It prints what each took, how many bytes against the least possible, and
// where the time of the latter went. PLAIN=no in the environment leaves the
// plain ones out, which take most of its time.
func BenchmarkColdStart(b *testing.B) {
	var pairs []*pair
	for _, network := range shape.Profiles {
		b.Run(network.Name, func(b *testing.B) {
			for _, w := range workloads {
				b.Run(w.name, func(b *testing.B) { pairs = append(pairs, coldStarts(b, network, w)) })
			}
		})
	}
	for _, table := range []func(io.Writer, []*pair) error{printStarts, printPhases, printSeconds, printFloors, printWaste} {
		if err := table(os.Stdout, pairs); err != nil {
			b.Error(err)
		}
	}
}

func coldStarts(b *testing.B, network shape.Profile, w workload) *pair {
	registry := converted(b, w.image(b))
	p := &pair{network: network.Name, workload: w.name, floor: floorOf(b, registry, w)}
	proxy := shaped(b, registry, network)
	for b.Loop() {
		if os.Getenv("PLAIN") != "no" {
			p.plain = append(p.plain, coldStart(b, proxy, "overlayfs", w.command))
		}
		p.block = append(p.block, coldStart(b, proxy, "overlaybd", w.command))
	}
	if os.Getenv("WASTE") != "" {
		m := median(p.block)
		p.waste = wasteOf(b, registry, p.floor, m.log)
	}
	b.ReportMetric(p.ratio(), "of-plain")
	b.ReportMetric(p.overFloor(), "of-floor")
	return p
}

// median returns the start that took neither long nor short, or none of none.
func median(all []start) start {
	if len(all) == 0 {
		return start{}
	}
	sorted := slices.SortedFunc(slices.Values(all), func(a, b start) int { return cmp.Compare(a.took(), b.took()) })
	return sorted[len(sorted)/2]
}

// ratio returns what a start of the block image takes of a plain one's time.
func (p *pair) ratio() float64 {
	return float64(median(p.block).took()) / float64(median(p.plain).took())
}

// overFloor returns how many bytes a start of the block image fetches for each
// that it could not do without.
func (p *pair) overFloor() float64 {
	return float64(median(p.block).summary().Bytes) / float64(p.floor.Bytes)
}
