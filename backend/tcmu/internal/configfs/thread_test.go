// SPDX-License-Identifier: Apache-2.0

package configfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func threadName(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestAwait asks that a thread that waits can be told by its name, and has its
// own afterwards.
func TestAwait(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadName(t)
	b, fault := Backstore{5, "1"}, errors.New("fault")
	err := await(b, func() error {
		if got := threadName(t); got != b.waiter() {
			t.Errorf("the thread is called %q, want %q", got, b.waiter())
		}
		return fault
	})
	if got := threadName(t); !errors.Is(err, fault) || got != before {
		t.Errorf("%v, and the thread is called %q, want %q", err, got, before)
	}
}

// TestLetGo fails the commands of disks that killed threads wait for, and of no
// other.
func TestLetGo(t *testing.T) {
	const (
		head    = "Umask:\t0022\nState:\tD (disk sleep)\n"
		pending = "SigQ:\t1/95000\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000100\n"
		none    = "SigPnd:\t0000000000000200\nShdPnd:\t0000000000000100\n"
	)
	dead, alive, other := Backstore{5, "dead"}, Backstore{5, "alive"}, Backstore{6, "dead"}
	files := map[string]string{
		"proc/7/task/8/status":   "Name:\t" + dead.waiter() + "\n" + head + pending,
		"proc/7/task/9/status":   "Name:\tworker\n" + head + pending,
		"proc/9/task/9/status":   "Name:\t" + alive.waiter() + "\n" + head + none,
		"proc/10/task/10/comm":   "",
		"proc/net/task/1/status": "Name:\t" + other.waiter() + "\n" + pending,
	}
	all := []Backstore{dead, alive, other}
	tree := fakeTree(t, files)
	for _, b := range all {
		for _, name := range []string{"block_dev", "reset_ring"} {
			name = filepath.Join(tree.path(b), "action", name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if held, err := tree.held(all); err != nil || !slices.Equal(held, []Backstore{dead}) {
		t.Errorf("held: %v, %v", held, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tree.LetGo(ctx, all); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), `"dead"`) {
		t.Errorf("let go of the living: %v", err)
	}
	for _, b := range all {
		blocked, _ := read(tree.path(b), "action", "block_dev")
		reset, _ := read(tree.path(b), "action", "reset_ring")
		if is := blocked == "0" && reset == "2"; is != (b == dead) || blocked == "1" {
			t.Errorf("%v: block_dev %q, reset_ring %q", b, blocked, reset)
		}
	}
	if err := os.RemoveAll(filepath.Join(tree.Proc, "7")); err != nil {
		t.Fatal(err)
	}
	if err := tree.LetGo(ctx, all); err != nil {
		t.Error(err)
	}
}
