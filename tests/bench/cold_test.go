// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// workloads are programs of [e2e.Runtimes]. Each says that it is ready when it
// could begin to work.
var workloads = []struct {
	name    string
	command []string
}{
	{"python", []string{"python3", "-c", "import json, ssl, http.client; print('ready')"}},
	{"numpy", []string{"python3", "-c", "import numpy; print('ready', numpy.ones(9).sum())"}},
	{"node", []string{"node", "-e", "require('http').createServer().listen('/tmp/s', () => { console.log('ready'); process.exit() })"}},
	{"redis", []string{"sh", "-c", "redis-server --port 0 --unixsocket /tmp/s --save '' >/dev/null & " +
		"until redis-cli -s /tmp/s ping >/dev/null 2>&1; do sleep 0.01; done; echo ready; redis-cli -s /tmp/s shutdown"}},
}

// A pair is the starts of one workload on one network, in turns.
type pair struct {
	network, workload string
	plain, block      []start
}

// BenchmarkColdStart starts real containers on nodes that have nothing of the
// image, over networks: after a plain pull, and from a block image, in turns.
// It prints what each took and where the time of the latter went.
func BenchmarkColdStart(b *testing.B) {
	registry := publish(b, e2e.Runtimes(b))
	var pairs []*pair
	for _, network := range shape.Profiles {
		b.Run(network.Name, func(b *testing.B) {
			for _, w := range workloads {
				p := &pair{network: network.Name, workload: w.name}
				b.Run(w.name, func(b *testing.B) {
					proxy := shaped(b, registry, network)
					for b.Loop() {
						p.plain = append(p.plain, coldStart(b, proxy, "overlayfs", w.command))
						p.block = append(p.block, coldStart(b, proxy, "overlaybd", w.command))
					}
					b.ReportMetric(p.ratio(), "of-plain")
				})
				if len(p.block) > 0 {
					pairs = append(pairs, p)
				}
			}
		})
	}
	if err := printStarts(os.Stdout, pairs); err != nil {
		b.Error(err)
	}
	if err := printPhases(os.Stdout, pairs); err != nil {
		b.Error(err)
	}
}

// median returns the start that took neither long nor short.
func median(all []start) start {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b start) int { return cmp.Compare(a.took(), b.took()) })
	return sorted[len(sorted)/2]
}

// ratio returns what a start of the block image takes of a plain one's time.
func (p *pair) ratio() float64 {
	return float64(median(p.block).took()) / float64(median(p.plain).took())
}

func printStarts(w io.Writer, pairs []*pair) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nnetwork\tworkload\tsnapshotter\tpull s\tready s\tratio\tagain s\trequests\tconnections\tMB\tof image\tchain\tround trips\tdaemons CPU s\tnode CPU s\tdaemons MB\t")
	for _, p := range pairs {
		for _, r := range []struct {
			name string
			start
			ratio float64
		}{{"overlayfs", median(p.plain), 1}, {"overlaybd", median(p.block), p.ratio()}} {
			s, chain := r.summary(), r.log.Chain()
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%.2f\t%s\t%d\t%d\t%.1f\t%.0f %%\t%d\t%d\t%s\t%s\t%d\t\n", p.network, p.workload, r.name,
				seconds(r.pulled.Sub(r.begun)), seconds(r.took()), r.ratio, seconds(r.again),
				s.Requests, s.Connections, float64(s.Bytes)/1e6, 100*float64(s.Bytes)/float64(r.size),
				len(chain), chain.Trips(), seconds(r.daemons.cpu()), seconds(r.node.cpu()), r.daemons.peak>>20)
		}
	}
	return tw.Flush()
}

// printPhases prints where the time of the block images' starts went: which
// part of the work, and whether bytes were arriving then, or waited for.
func printPhases(w io.Writer, pairs []*pair) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nnetwork\tworkload\tphase\ts\twaiting\tarriving\tno request\trequests\tMB\tchain\tround trips\t")
	for _, p := range pairs {
		for _, ph := range median(p.block).phases() {
			s, chain := ph.log.Summarize(ph.from, ph.to), ph.log.Chain()
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%.1f\t%d\t%d\t\n", p.network, p.workload, ph.name,
				seconds(ph.to.Sub(ph.from)), seconds(s.Waiting), seconds(s.Transfer), seconds(s.Idle),
				s.Requests, float64(s.Bytes)/1e6, len(chain), chain.Trips())
		}
	}
	return tw.Flush()
}

// A phase is a part of a start, with the requests that began in it.
type phase struct {
	name     string
	from, to time.Time
	log      shape.Log
}

func (s start) phases() []phase {
	all := []phase{
		{"pull: manifest, config, snapshots", s.begun, s.pulled, nil},
		{"run: to the block daemon", s.pulled, s.opened.begun, nil},
		{"open the image", s.opened.begun, s.opened.done, nil},
		{"mount, start, until ready", s.opened.done, s.first, nil},
	}
	for i, p := range all {
		for _, q := range s.log {
			if !q.Start.Before(p.from) && q.Start.Before(p.to) {
				all[i].log = append(all[i].log, q)
			}
		}
	}
	return all
}
