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

// tower returns a registry, a mirror of it, and an Opener of a blob of both as
// the daemon has it.
func tower(t *testing.T, content []byte) (at, origin *fetchertest.Registry, o fetcher.Opener, ref fetcher.Ref, m *mirror.Opener) {
	t.Helper()
	at = fetchertest.NewRegistry(t, fetchertest.Options{})
	origin = fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true})
	at.AddBlob("r", content)
	ref = origin.AddBlob("r", content)
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
	m = mirror.New(reg, limit.New(reg, limit.Options{}), mirror.Options{})
	return at, origin, retry.New(m, retry.Options{First: time.Millisecond}), ref, m
}

// stream reads n bytes at off by a stream, which must be those of content.
func stream(t *testing.T, b fetcher.Blob, content []byte, off, n int64) {
	t.Helper()
	r, err := fetcher.ReadRange(t.Context(), b, off, n)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[off:off+n]) {
		t.Errorf("got %d bytes and %v", len(got), err)
	}
}

// TestStreamGoesOnAtOrigin breaks the mirror in the middle of a stream through
// retry, mirror, limit and registry.
func TestStreamGoesOnAtOrigin(t *testing.T) {
	content := fetchertest.Content(1<<20, 1)
	at, origin, o, ref, _ := tower(t, content)
	b := fetchertest.Open(t, o, ref)
	const broken = 300_000
	at.Fault(fetchertest.Fault{Body: fetchertest.Cut, After: broken})
	stream(t, b, content, 0, b.Size())
	log := origin.Log()
	last := log[len(log)-1]
	if last.Endpoint != fetchertest.Storage || last.Off != broken || last.N != b.Size()-broken {
		t.Errorf("origin was asked for %d bytes at %d, want the rest from %d", last.N, last.Off, broken)
	}
}

// TestLateMirror: a mirror that hangs, once its pace is known, costs less than
// its timeout, and its blob can be closed meanwhile.
func TestLateMirror(t *testing.T) {
	content := fetchertest.Content(100_000, 1)
	at, _, o, ref, m := tower(t, content)
	b := fetchertest.Open(t, o, ref)
	for range 20 {
		stream(t, b, content, 0, 10_000)
	}
	at.Fault(fetchertest.Fault{Hang: true, Times: -1})
	stream(t, b, content, 50_000, 10_000)
	// On a machine that was slow before, it was the timeout that helped.
	if got := m.Stats(); got.HedgesWon+got.Failures == 0 {
		t.Errorf("got %+v, want a hedge", got)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
