// SPDX-License-Identifier: Apache-2.0

package mirror_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
)

// TestStreamGoesOnAtOrigin breaks the mirror in the middle of a stream through
// retry, mirror, limit and registry.
func TestStreamGoesOnAtOrigin(t *testing.T) {
	at := fetchertest.NewRegistry(t, fetchertest.Options{})
	origin := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true})
	content := fetchertest.Content(1<<20, 1)
	at.AddBlob("r", content)
	ref := origin.AddBlob("r", content)
	ref.URL = strings.Replace(ref.URL, origin.URL(), "https://registry.example", 1)

	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "registry.example"), 0o700); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", origin.URL(), at.URL())
	if err := os.WriteFile(filepath.Join(dir, "registry.example", "hosts.toml"), []byte(hosts), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := registry.New(registry.Options{HostsDir: dir})
	t.Cleanup(func() { _ = reg.Close() })
	tower := retry.New(mirror.New(reg, limit.New(reg, limit.Options{}), mirror.Options{}), retry.Options{First: time.Millisecond})
	b, err := tower.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()

	const broken = 300_000
	at.Fault(fetchertest.Fault{Body: fetchertest.Cut, After: broken})
	r, err := fetcher.ReadRange(t.Context(), b, 0, b.Size())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Errorf("got %d bytes and %v", len(got), err)
	}
	log := origin.Log()
	last := log[len(log)-1]
	if last.Endpoint != fetchertest.Storage || last.Off != broken || last.N != b.Size()-broken {
		t.Errorf("origin was asked for %d bytes at %d, want the rest from %d", last.N, last.Off, broken)
	}
}
