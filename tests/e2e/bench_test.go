// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// BenchmarkColdRead reads every file of Debian with Python through a lazily
// mounted image of which the node has nothing, one after the other, against a
// plain pull and unpack of the same image, without and with reading every file
// after it. The registry is on the same machine and as fast as that is.
func BenchmarkColdRead(b *testing.B) {
	need.FUSE(b)
	need.Loop(b)
	registry := e2e.StartRegistry(b)
	oci := registry.Push(b, e2e.Debian(b), "image", "oci")
	block := registry.Host + "/image:block"
	convert := e2e.Start(b, e2e.Options{Overlaybd: true, Registry: registry})
	convert.Fetch(oci)
	convert.Ctr("obdconv", oci, block)
	convert.Ctr("images", "push", "--local", "--plain-http", block)

	var pull, pullAndRead, lazy time.Duration
	for b.Loop() {
		node := e2e.Start(b, e2e.Options{Overlaybd: true, Registry: registry})
		dropPageCache(b)
		begun := time.Now()
		node.Pull(oci)
		pull += time.Since(begun)
		n := readTree(b, node.Mount("overlayfs", oci))
		pullAndRead += time.Since(begun)

		dropPageCache(b)
		begun = time.Now()
		node.Ctr("rpull", "--plain-http", block)
		if got := readTree(b, node.Mount("overlaybd", block)); got != n {
			b.Fatalf("read %d bytes of the lazy image, %d of the plain one", got, n)
		}
		lazy += time.Since(begun)
		b.SetBytes(n)
	}
	b.ReportMetric(float64(pull)/float64(lazy), "x-of-pull")
	b.ReportMetric(float64(pullAndRead)/float64(lazy), "x-of-pull-and-read")
}

func dropPageCache(b *testing.B) {
	b.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		b.Fatal(err)
	}
}

// readTree reads all files below root and returns their size in bytes.
func readTree(b *testing.B, root string) (n int64) {
	b.Helper()
	buf := make([]byte, 1<<20)
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		for {
			k, err := f.Read(buf)
			n += int64(k)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
