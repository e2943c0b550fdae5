// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"os"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// TestAgain starts a container a second time on a node whose daemons were
// killed and whose registry is off: what the first start read is there, and
// nobody is asked.
func TestAgain(t *testing.T) {
	registry := publish(t, e2e.Synthetic(t))
	p := shaped(t, registry, shape.Profile{Name: "test"})
	node := newNode(t, p, "overlaybd")
	ref := pull(node, p, "overlaybd")
	read := []string{"/probe", "sum", "/odd/noise", "/tree/grows"}
	want := node.Run("overlaybd", ref, read...)
	if s := p.Log().Summarize(time.Time{}, time.Now()); s.Requests == 0 {
		t.Fatal("the first start asked nobody")
	}

	registry.Stop() // the proxy before it still counts
	node.Snapshotter.KillBlockd()
	node.Snapshotter.Kill()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	p.Reset()
	node.Snapshotter.Restart()
	node.AwaitSnapshotter()
	if got := node.Run("overlaybd", ref, read...); got != want {
		t.Errorf("the second start read\n%s, the first\n%s", got, want)
	}
	for _, q := range p.Log() {
		t.Errorf("%s %s %s %s: status %d", q.Endpoint, q.Method, q.Path, q.Range, q.Status)
	}
}
