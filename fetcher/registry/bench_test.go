// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
)

// extent is what a cache asks for at once, in bytes.
const extent = 256 << 10

// BenchmarkWarmRead256K asks what checking, watching and authorizing a read
// costs over the same request by a bare http.Client.
func BenchmarkWarmRead256K(b *testing.B) {
	reg := fetchertest.NewRegistry(b, fetchertest.Options{})
	ref := reg.AddBlob(repo, fetchertest.Content(4*extent, 1))
	p := make([]byte, extent)
	var bare float64
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(extent)
		for b.Loop() {
			get(b, ref.URL, p, extent)
		}
		bare = perOp(b)
	})
	b.Run("blob", func(b *testing.B) {
		o := registry.New(registry.Options{})
		defer func() { _ = o.Close() }()
		blob, err := o.Open(b.Context(), ref)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		b.SetBytes(extent)
		for b.Loop() {
			if _, err := blob.ReadAt(b.Context(), p, extent); err != nil {
				b.Fatal(err)
			}
		}
		if bare > 0 {
			b.ReportMetric(perOp(b)/bare, "x-of-bare")
		}
	})
}

func perOp(b *testing.B) float64 { return float64(b.Elapsed()) / float64(b.N) }

// get reads len(p) bytes from off with http.DefaultClient.
func get(b *testing.B, url string, p []byte, off int64) {
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	if _, err := io.ReadFull(r.Body, p); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkFirstRead asks how many round trips the first read of a repository
// and the first of another blob take, with a token and a redirect.
func BenchmarkFirstRead(b *testing.B) {
	const rtt = 20 * time.Millisecond
	reg := fetchertest.NewRegistry(b, fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true, RTT: rtt})
	ref := reg.AddBlob(repo, fetchertest.Content(extent, 1))
	read := func(o fetcher.Opener) {
		blob, err := o.Open(b.Context(), ref)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = blob.Close() }()
		if _, err := blob.ReadAt(b.Context(), make([]byte, 4096), 0); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("repository", func(b *testing.B) {
		for b.Loop() {
			o := registry.New(registry.Options{})
			read(o)
			_ = o.Close()
		}
		b.ReportMetric(perOp(b)/float64(rtt), "round-trips")
	})
	b.Run("blob", func(b *testing.B) {
		o := registry.New(registry.Options{})
		defer func() { _ = o.Close() }()
		read(o)
		for b.Loop() {
			read(o)
		}
		b.ReportMetric(perOp(b)/float64(rtt), "round-trips")
	})
}
