// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestRealRegistry reads from the distribution project's registry with Basic
// authorization.
func TestRealRegistry(t *testing.T) {
	base := startRegistry(t, need.Command(t, "docker-registry"))
	content := fetchertest.Content(1<<20+1, 1)
	ref := push(t, base, content)
	o := newOpener(t, registry.Options{Credentials: static{Username: "user", Password: "pa55word"}})
	b := fetchertest.Open(t, o, ref)
	fetchertest.Want(t, b, content, 12_345, 100_000)
	fetchertest.Want(t, b, content, len(content)-1, 1)

	unsized := ref
	unsized.Size = 0
	if got := fetchertest.Open(t, o, unsized).Size(); got != int64(len(content)) {
		t.Errorf("Size() = %d, want %d", got, len(content))
	}
	missing := ref
	missing.URL = strings.Replace(ref.URL, "library/test", "library/none", 1)
	if err := readErr(t, fetchertest.Open(t, o, missing)); !errors.Is(err, fetcher.ErrNotFound) {
		t.Errorf("missing: got %v, want fetcher.ErrNotFound", err)
	}
	longer := ref
	longer.Size += 5000
	_, err := fetchertest.Open(t, o, longer).ReadAt(t.Context(), make([]byte, 10), int64(len(content))+100)
	if !errors.Is(err, fetcher.ErrNotFound) {
		t.Errorf("past the end: got %v, want fetcher.ErrNotFound", err)
	}
	if err := readErr(t, fetchertest.Open(t, newOpener(t, registry.Options{}), ref)); !errors.Is(err, fetcher.ErrUnauthorized) {
		t.Errorf("anonymous: got %v, want fetcher.ErrUnauthorized", err)
	}
}

// startRegistry runs the program with an empty store and returns its URL.
func startRegistry(t *testing.T, program string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	dir := t.TempDir()
	const htpasswd = "user:$2y$05$abcdefghijklmnopqrstuur.ZxEKly2fYX6K.hrvYXsoEaKgtr95a\n" // bcrypt of pa55word
	config := fmt.Sprintf(`version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: %s}
auth: {htpasswd: {realm: test, path: %s}}
`, filepath.Join(dir, "store"), addr, filepath.Join(dir, "htpasswd"))
	for name, text := range map[string]string{"config.yml": config, "htpasswd": htpasswd} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), program, "serve", filepath.Join(dir, "config.yml"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
	})
	for {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			_ = c.Close()
			return "http://" + addr
		}
		select {
		case <-exited:
			t.Fatalf("docker-registry ended: %s", out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// push uploads content and returns where it is.
func push(t *testing.T, base string, content []byte) fetcher.Ref {
	t.Helper()
	dgst := digest.FromBytes(content)
	location, err := url.Parse(request(t, http.MethodPost, base+"/v2/library/test/blobs/uploads/", nil, http.StatusAccepted))
	if err != nil {
		t.Fatal(err)
	}
	q := location.Query()
	q.Set("digest", dgst.String())
	location.RawQuery = q.Encode()
	request(t, http.MethodPut, location.String(), content, http.StatusCreated)
	return fetcher.Ref{URL: base + "/v2/library/test/blobs/" + dgst.String(), Digest: dgst, Size: int64(len(content))}
}

// request sends body and returns the Location of the answer.
func request(t *testing.T, method, to string, body []byte, status int) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, to, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("user", "pa55word")
	req.Header.Set("Content-Type", "application/octet-stream")
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	if r.StatusCode != status {
		t.Fatalf("%s %s: %s", method, to, r.Status)
	}
	return r.Header.Get("Location")
}
