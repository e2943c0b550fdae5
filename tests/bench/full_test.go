// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// A reading is what it cost to read every file of an image of which the node
// had nothing.
type reading struct {
	pulled, took time.Duration
	files        int64 // bytes of the archive
	fetched      shape.Summary
	chain        int // of requests
	daemons      usage
	node         usage
}

// BenchmarkFullRead archives the root of an image that is not on the node, the
// pull included: what a lazy image costs once all of it is wanted. Plain pulls
// and block images take turns.
func BenchmarkFullRead(b *testing.B) {
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nimage\tsnapshotter\tpull s\tall s\tratio\trequests\tchain\tfetched MB\tread MB\tdaemons CPU s\tnode CPU s\tdaemons MB\teach s\t")
	for _, i := range []struct {
		name  string
		image func(testing.TB) e2e.Image
	}{{"redis", e2e.Redis}, {"python", e2e.Python}} {
		b.Run(i.name, func(b *testing.B) {
			proxy := shaped(b, converted(b, i.image(b)), profile(b, "wan"))
			var plain, block []reading
			for b.Loop() {
				plain = append(plain, fullRead(b, proxy, "overlayfs"))
				block = append(block, fullRead(b, proxy, "overlaybd"))
			}
			base := middle(plain).took
			printReading(tw, i.name, "overlayfs", base, plain)
			printReading(tw, i.name, "overlaybd", base, block)
			b.ReportMetric(float64(middle(block).took)/float64(base), "of-plain")
		})
	}
	if err := tw.Flush(); err != nil {
		b.Error(err)
	}
}

// profile returns the network of that name.
func profile(tb testing.TB, name string) shape.Profile {
	tb.Helper()
	i := slices.IndexFunc(shape.Profiles, func(p shape.Profile) bool { return p.Name == name })
	if i < 0 {
		tb.Fatalf("no network %s", name)
	}
	return shape.Profiles[i]
}

// fullRead pulls the image to a new node and reads it all.
func fullRead(tb testing.TB, p *shape.Proxy, snapshotter string) (r reading) {
	tb.Helper()
	turn := &scope{TB: tb}
	defer turn.end()
	node := newNode(turn, p, snapshotter)
	daemons, all := processes(tb, node)
	r.daemons, r.node = daemons.usage(tb), all.usage(tb)
	begun := time.Now()
	ref := pull(node, p, snapshotter)
	r.pulled = time.Since(begun)
	r.files = archive(tb, node.Mount(snapshotter, ref))
	r.took = time.Since(begun)
	r.daemons, r.node = daemons.usage(tb).since(r.daemons), all.usage(tb).since(r.node)
	log := p.Log()
	r.fetched, r.chain = log.Summarize(begun, time.Now()), len(log.Chain())
	return r
}

// archive has tar read what is below root, and returns the size of what it
// wrote. That goes through a pipe: tar reads no files for /dev/null.
func archive(tb testing.TB, root string) int64 {
	tb.Helper()
	var size counter
	var stderr bytes.Buffer
	tar := exec.CommandContext(tb.Context(), "tar", "--create", "--directory", root, ".")
	tar.Stdout, tar.Stderr = &size, &stderr
	if err := tar.Run(); err != nil {
		tb.Fatalf("%v: %v\n%s", tar.Args, err, &stderr)
	}
	return int64(size)
}

func middle(all []reading) reading {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b reading) int { return int(a.took - b.took) })
	return sorted[len(sorted)/2]
}

func printReading(w *tabwriter.Writer, image, snapshotter string, base time.Duration, all []reading) {
	r := middle(all)
	each := make([]string, len(all))
	for i, a := range all {
		each[i] = seconds(a.took)
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.2f\t%d\t%d\t%.1f\t%.1f\t%s\t%s\t%d\t%s\t\n", image, snapshotter, seconds(r.pulled), seconds(r.took),
		float64(r.took)/float64(base), r.fetched.Requests, r.chain, float64(r.fetched.Bytes)/1e6, float64(r.files)/1e6,
		seconds(r.daemons.cpu()), seconds(r.node.cpu()), r.daemons.peak>>20, strings.Join(each, " "))
}
