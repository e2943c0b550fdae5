// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A workload is a program in an image. It says that it is ready when it could
// begin to work.
type workload struct {
	name    string
	image   func(testing.TB) e2e.Image
	command []string
}

var workloads = []workload{
	{"redis", e2e.Redis, []string{
		"sh", "-c", "redis-server --port 0 --unixsocket /tmp/s --save '' >/dev/null & " +
			"until redis-cli -s /tmp/s ping >/dev/null 2>&1; do sleep 0.01; done; echo ready; redis-cli -s /tmp/s shutdown",
	}},
	{"numpy", e2e.Python, []string{"python3", "-c", "import numpy; print('ready')"}},
	{"node", e2e.Python, []string{"node", "-e", "require('express')().listen('/tmp/s', () => { console.log('ready'); process.exit() })"}},
	{"pandas", e2e.Python, []string{"python3", "-c", "import pandas, scipy.stats; print('ready')"}},
	{"java", e2e.Big, []string{"java", "-cp", "/app", "Hello"}},
}

// convertFlags are flags of the convertor for all images, such as "--algorithm
// zstd --bs 16".
func convertFlags() []string { return strings.Fields(os.Getenv("CONVERT")) }

// conversion names what the convertor, with its flags, makes of an image.
func conversion(img e2e.Image) string {
	name := "converted-" + filepath.Base(img.Dir)
	for _, f := range convertFlags() {
		name += "-" + strings.TrimLeft(f, "-")
	}
	return name
}

// converted returns a registry of the image and what the convertor makes of it,
// which an earlier run may have done.
func converted(tb testing.TB, img e2e.Image) *e2e.Registry {
	tb.Helper()
	storage := need.Cached(tb, conversion(img), func(dir string) {
		tb.Log("converting", filepath.Base(img.Dir), "once")
		publishTo(tb, e2e.OpenRegistry(tb, dir), img)
	})
	inMemory(tb, storage)
	return e2e.OpenRegistry(tb, storage)
}

// publish pushes img to a new registry, and what the convertor makes of it.
func publish(tb testing.TB, img e2e.Image) *e2e.Registry {
	tb.Helper()
	registry := e2e.StartRegistry(tb)
	publishTo(tb, registry, img)
	return registry
}

func publishTo(tb testing.TB, registry *e2e.Registry, img e2e.Image) {
	tb.Helper()
	need.Root(tb)
	need.FUSE(tb)
	need.Loop(tb)
	registry.Push(tb, img, "image", "overlayfs")
	convertTo(tb, registry, append(convertFlags(), "-o", "overlaybd")...)
}

// convertTo adds what the convertor makes, by its flags, of the image in a
// registry.
func convertTo(tb testing.TB, registry *e2e.Registry, flags ...string) {
	tb.Helper()
	args := append([]string{"-r", registry.Host + "/image", "-i", "overlayfs", "--plain", "--dir", tb.TempDir()}, flags...)
	convert := exec.CommandContext(tb.Context(), filepath.Join(e2e.Bin(tb), "convertor"), args...)
	if out, err := convert.CombinedOutput(); err != nil {
		tb.Fatalf("%v: %v\n%s", convert.Args, err, out)
	}
	used := convert.ProcessState
	tb.Logf("%v: %v of CPU", convert.Args, used.UserTime()+used.SystemTime())
}

// inMemory reads the files below dir, which a disk would make slower than the
// network is.
func inMemory(tb testing.TB, dir string) {
	tb.Helper()
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(struct{ io.Writer }{io.Discard}, f)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// fetchManifest decodes a manifest or an index of the registry.
func fetchManifest(tb testing.TB, registry *e2e.Registry, tag, mediaType string, v any) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, fmt.Sprintf("http://%s/v2/image/manifests/%s", registry.Host, tag), http.NoBody)
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Accept", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil || resp.StatusCode != http.StatusOK {
		tb.Fatalf("%s: %s, %v", req.URL, resp.Status, err)
	}
}
