// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
)

func printStarts(w io.Writer, pairs []*pair) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nnetwork\tworkload\tsnapshotter\tpull s\tready s\tratio\tagain s\trequests\tconnections\tMB\tof image\tof floor\tchain\tround trips\tdaemons CPU s\tnode CPU s\tdaemons MB\t")
	for _, p := range pairs {
		for _, r := range []struct {
			name string
			start
			ratio float64
		}{{"overlayfs", median(p.plain), 1}, {"overlaybd", median(p.block), p.ratio()}} {
			if r.first.IsZero() {
				continue
			}
			s, chain := r.summary(), r.log.Chain()
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%.2f\t%s\t%d\t%d\t%.1f\t%.0f %%\t%.1f\t%d\t%d\t%s\t%s\t%d\t\n", p.network, p.workload, r.name,
				seconds(r.pulled.Sub(r.begun)), seconds(r.took()), r.ratio, seconds(r.again),
				s.Requests, s.Connections, float64(s.Bytes)/1e6, 100*float64(s.Bytes)/float64(r.size), float64(s.Bytes)/float64(p.floor.Bytes),
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

// printSeconds prints how long every start took: plain pulls on a busy machine
// vary more than what they are compared with.
func printSeconds(w io.Writer, pairs []*pair) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nnetwork\tworkload\toverlayfs, each s\toverlaybd, each s\t")
	for _, p := range pairs {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t\n", p.network, p.workload, each(p.plain), each(p.block))
	}
	return tw.Flush()
}

func each(all []start) string {
	words := make([]string, len(all))
	for i, s := range all {
		words[i] = seconds(s.took())
	}
	return strings.Join(words, " ")
}

// elsewhere is the floor of the same programs, in MB, as others found it on
// images of the same packages: blocks that the kernel reads of a disk with
// read-ahead off, compressed by zlib.
var elsewhere = map[string]float64{"redis": 3.1, "numpy": 7.1, "node": 12.0, "pandas": 21.2, "java": 9.5}

// printFloors prints the bytes that no start can do without.
func printFloors(w io.Writer, pairs []*pair) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nworkload\tblocks read\tMB\tfloor MB, compressed\tas others found\t")
	seen := make(map[string]bool)
	for _, p := range pairs {
		if seen[p.workload] {
			continue
		}
		seen[p.workload] = true
		fmt.Fprintf(tw, "%s\t%d\t%.1f\t%.1f\t%.1f\t\n", p.workload, p.floor.Blocks,
			floorBlock*float64(p.floor.Blocks)/1e6, float64(p.floor.Bytes)/1e6, elsewhere[p.workload])
	}
	return tw.Flush()
}
