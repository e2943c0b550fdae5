// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestBlockdKilled: a container whose device outlives its daemon waits for the
// next one, and reads on.
func TestBlockdKilled(t *testing.T) {
	gate(t)
	if exporter := os.Getenv("E2E_EXPORTER"); !slices.Contains([]string{"tcmu", "ublk"}, exporter) {
		need.Capability(t, "survival", errors.New("E2E_EXPORTER names none whose devices outlive their daemon"))
	}
	registry := e2e.StartRegistry(t)
	_, block := converted(t, registry, e2e.Synthetic(t))
	env := start(t, registry)
	env.Ctr("rpull", "--plain-http", block)
	env.Ctr("run", "--detach", "--snapshotter", "overlaybd", block, "victim", "/probe", "wait")
	want := env.Run("overlaybd", block, "/probe", "sum", "/odd/noise", "/tree/grows")

	env.Snapshotter.KillBlockd()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		text string
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		text, err := env.TryCtr(t.Context(), "tasks", "exec", "--exec-id", "sum", "victim", "/probe", "sum", "/odd/noise", "/tree/grows")
		read <- answer{text, err}
	}()
	env.Snapshotter.Kill()
	env.Snapshotter.Restart() // starts a block daemon
	got := <-read
	if diff := cmp.Diff(want, got.text); diff != "" || got.err != nil {
		t.Errorf("the container reads otherwise (%v):\n%s", got.err, diff)
	}
	env.AwaitSnapshotter()
	if got := env.Run("overlaybd", block); got != "hello\n" {
		t.Errorf("afterwards a container said %q", got)
	}
}
