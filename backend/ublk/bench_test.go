// SPDX-License-Identifier: Apache-2.0

package ublk_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
)

// BenchmarkRead asks which way of moving data is faster: by us, through the
// character device and buffers that all devices share, or by the kernel, to and
// from memory that each request has for itself. It reads at random, past the
// page cache, from memory. The processor time (cpu-ns/op) and the number of times
// that a thread waited (waits/op) are those of the whole process, which is reader
// and server.
func BenchmarkRead(b *testing.B) {
	needUBLK(b)
	for _, way := range []struct {
		name string
		mk   func(ublk.Options) (*ublk.Exporter, error)
	}{{"ours", ublk.New}, {"kernel", ublk.NewCopied}} {
		for _, c := range []struct{ size, readers int }{{4 << 10, 1}, {4 << 10, 16}, {128 << 10, 4}} {
			b.Run(fmt.Sprintf("copy=%s/size=%dK/readers=%d", way.name, c.size>>10, c.readers), func(b *testing.B) {
				e, err := way.mk(ublk.Options{Dir: b.TempDir()})
				closed(b, e, err)
				v := backendtest.NewMemVolume(64 << 20)
				d, err := e.Export(b.Context(), "bench", v)
				if err != nil {
					b.Fatal(err)
				}
				readAll(b, d.Path(), v.Size(), c.size, c.readers)
			})
		}
	}
}

// readAll makes b.N reads, several at a time.
func readAll(b *testing.B, disk string, total int64, size, readers int) {
	b.Helper()
	f, err := os.OpenFile(disk, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(int64(size))
	b.ResetTimer()
	time0, waits0 := usage()
	var wg sync.WaitGroup
	for r := range readers {
		wg.Go(func() {
			p := make([]byte, size+4096)
			p = p[-uintptr(unsafe.Pointer(&p[0]))&4095:][:size]
			rnd := rand.New(rand.NewPCG(1, uint64(r)))
			for range (b.N + readers - 1) / readers {
				if _, err := f.ReadAt(p, rnd.Int64N(total/int64(size))*int64(size)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	time1, waits1 := usage()
	b.ReportMetric(float64(time1-time0)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(waits1-waits0)/float64(b.N), "waits/op")
}

// usage returns the processor time of the process, in nanoseconds, and how
// often its threads waited.
func usage() (cpu, waits int64) {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	return u.Utime.Nano() + u.Stime.Nano(), u.Nvcsw
}
