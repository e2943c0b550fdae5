// SPDX-License-Identifier: Apache-2.0

package fetchertest_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
)

func get(t *testing.T, url, span string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if span != "" {
		req.Header.Set("Range", span)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, r.Header, string(text)
}

func TestManifests(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	dgst := reg.AddManifest("r", "latest", "application/test", []byte("manifest"))
	for _, reference := range []string{"latest", dgst.String()} {
		_, header, text := get(t, reg.URL()+"/v2/r/manifests/"+reference, "")
		if text != "manifest" || header.Get("Content-Type") != "application/test" || header.Get("Docker-Content-Digest") != dgst.String() {
			t.Errorf("%s: got %q with %v", reference, text, header)
		}
	}
	if status, _, _ := get(t, reg.URL()+"/v2/r/manifests/none", ""); status != http.StatusNotFound {
		t.Errorf("none: got status %d", status)
	}
}

func TestRangesAreLogged(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	ref := reg.AddBlob("r", []byte("0123456789"))
	if _, header, text := get(t, ref.URL, "bytes=2-5"); text != "2345" || header.Get("Content-Range") != "bytes 2-5/10" {
		t.Errorf("got %q with %v", text, header)
	}
	if log := reg.Log(); len(log) != 1 || log[0].Off != 2 || log[0].N != 4 || log[0].Status != http.StatusPartialContent {
		t.Errorf("got log %+v", log)
	}
}

func TestCorruptFlipsOneBit(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	ref := reg.AddBlob("r", []byte("0123456789"))
	reg.Fault(fetchertest.Fault{Body: fetchertest.Corrupt, After: 3})
	for _, want := range []string{"0122456789", "0123456789"} {
		if _, _, text := get(t, ref.URL, "bytes=0-9"); text != want {
			t.Errorf("got %q, want %q", text, want)
		}
	}
}

// TestShaping wants at least the time that the shape of the link takes: one
// round trip for the connection, one for the request, and the bandwidth.
func TestShaping(t *testing.T) {
	const rtt = 30 * time.Millisecond
	reg := fetchertest.NewRegistry(t, fetchertest.Options{RTT: rtt, BytesPerSecond: 1 << 20})
	ref := reg.AddBlob("r", fetchertest.Content(100<<10, 1))
	start := time.Now()
	get(t, ref.URL, "")
	if took, least := time.Since(start), 2*rtt+90*time.Millisecond; took < least {
		t.Errorf("took %v, want %v or more", took, least)
	}
}
