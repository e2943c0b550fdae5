// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// benchSize is the size of the disks that the benchmark reads, in bytes.
const benchSize = 64 << 20

// patterns are the reads that fio makes, with up to x of them under way.
var patterns = []struct {
	name string
	args []string
}{
	{"rand4K", []string{"--rw=randread", "--bs=4k", "--iodepth=1"}},
	{"rand4Kx32", []string{"--rw=randread", "--bs=4k", "--iodepth=32"}},
	{"seq128Kx4", []string{"--rw=read", "--bs=128k", "--iodepth=4"}},
}

// A contender is a disk to read.
type contender struct{ name, disk string }

// A cost is what fio's reads of one disk took.
type cost struct {
	rate   float64 // reads per second
	cpu    float64 // microseconds of all processors, for one read
	server float64 // of these, of the process that serves the devices
}

// BenchmarkKinds has fio read a file over a device of every kind, which this
// process serves, and over the kernel's loop device, in turns. The file is in
// memory: what is compared is the way from the reader to the bytes and back.
func BenchmarkKinds(b *testing.B) {
	need.Root(b)
	need.Command(b, "fio")
	contenders := contend(b)
	costs := make(map[string][]cost)
	for b.Loop() {
		for _, p := range patterns {
			for _, c := range contenders {
				key := p.name + c.name
				costs[key] = append(costs[key], measure(b, c, p.args))
			}
		}
	}
	b.Log("\n" + table(contenders, costs))
}

// contend makes the loop device and one device of every kind there is.
func contend(b *testing.B) []contender {
	b.Helper()
	file := filepath.Join(b.TempDir(), "file")
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1}), benchSize); err != nil {
		b.Fatal(err)
	}
	node, err := attachLoop(file, false, false)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := blockmount.DetachLoop(file); err != nil {
			b.Error(err)
		}
	})
	all := []contender{{"kernel loop", node}}
	for _, k := range kinds {
		if err := k.lacks(); err != nil {
			b.Logf("no %s: %v", k.name, err)
			continue
		}
		v, err := backendtest.OpenFile(file)
		if err != nil {
			b.Fatal(err)
		}
		d := export(b, k.exporter(b), "bench", backendtest.ReadOnly(v))
		all = append(all, contender{k.name, d.Path()})
	}
	return all
}

// measure has fio read a disk for two seconds.
func measure(b *testing.B, c contender, args []string) cost {
	b.Helper()
	busy, server := busyTime(b), ownTime(b)
	out := run(b, "fio", append([]string{
		"--name=read", "--filename=" + c.disk, "--readonly", "--direct=1", "--ioengine=libaio", "--thread",
		"--time_based", "--runtime=2", "--norandommap", "--output-format=json",
	}, args...)...)
	busy, server = busyTime(b)-busy, ownTime(b)-server
	var report struct {
		Jobs []struct {
			Read struct {
				IOPS     float64 `json:"iops"`
				TotalIOs float64 `json:"total_ios"`
			} `json:"read"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Jobs) != 1 || report.Jobs[0].Read.TotalIOs == 0 {
		b.Fatalf("fio reports no reads (%v):\n%s", err, out)
	}
	n := report.Jobs[0].Read
	return cost{n.IOPS, busy / n.TotalIOs, server / n.TotalIOs}
}

// busyTime returns how long the processors have worked since the boot, in
// microseconds.
func busyTime(b *testing.B) (sum float64) {
	b.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	f := strings.Fields(line) // cpu user nice system idle iowait irq softirq …
	for _, count := range slices.Concat(f[1:4], f[6:8]) {
		n, err := strconv.ParseFloat(count, 64)
		if err != nil {
			b.Fatal(err)
		}
		const tick = 10000 // microseconds: 1/USER_HZ
		sum += n * tick
	}
	return sum
}

// ownTime returns how long this process has worked, in microseconds.
func ownTime(b *testing.B) float64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1000
}

// table shows the medians: for each pattern reads per second, their ratio to
// those of the first contender, and the processors' microseconds for a read,
// in all and of the server.
func table(contenders []contender, costs map[string][]cost) string {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := "device\t"
	for _, p := range patterns {
		head += p.name + "/s\tratio\tCPU µs\tserver\t"
	}
	fmt.Fprintln(w, head)
	for _, c := range contenders {
		row := c.name + "\t"
		for _, p := range patterns {
			base, m := median(costs[p.name+contenders[0].name]), median(costs[p.name+c.name])
			row += fmt.Sprintf("%.0f\t%.2f\t%.0f\t%.0f\t", m.rate, m.rate/base.rate, m.cpu, m.server)
		}
		fmt.Fprintln(w, row)
	}
	_ = w.Flush() // into memory
	return text.String()
}

// median returns the median of each member by itself.
func median(all []cost) cost {
	of := func(member func(cost) float64) float64 {
		values := make([]float64, len(all))
		for i, c := range all {
			values[i] = member(c)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return cost{
		of(func(c cost) float64 { return c.rate }),
		of(func(c cost) float64 { return c.cpu }),
		of(func(c cost) float64 { return c.server }),
	}
}
