// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"bytes"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/http"
	"github.com/overlaybd-go/overlaybd/fetcher/s3"
)

// BenchmarkReadExtent asks what the SDK and its signatures cost: an extent of
// an object, and the same bytes of the same server without them. The server
// runs in the process and is part of both.
func BenchmarkReadExtent(b *testing.B) {
	const extent = 256 << 10
	content := fetchertest.Content(1<<20, 1)
	server := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		w.Header().Set("ETag", `"1"`)
		nethttp.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	b.Cleanup(server.Close)
	credentials := filepath.Join(b.TempDir(), "credentials")
	if err := os.WriteFile(credentials, []byte("[default]\naws_access_key_id = AK\naws_secret_access_key = SK\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		opener fetcher.Opener
		url    string
	}{
		{"http", http.New(http.Options{}), server.URL + "/bucket/key"},
		{"s3", s3.New(s3.Options{Endpoint: server.URL, PathStyle: true, CredentialsFile: credentials}), "s3://bucket/key"},
	} {
		b.Run(c.name, func(b *testing.B) {
			blob, err := c.opener.Open(b.Context(), fetcher.Ref{URL: c.url, Size: int64(len(content))})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = blob.Close() }()
			p := make([]byte, extent)
			b.SetBytes(extent)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := blob.ReadAt(b.Context(), p, extent); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
