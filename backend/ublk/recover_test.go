// SPDX-License-Identifier: Apache-2.0

package ublk_test

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
)

var kills = flag.Int("kills", 20, "how often to kill a process that serves a device")

func TestMain(m *testing.M) { backendtest.Main(m, survivor) }

// depthVar says how deep the only queue of a device is, also to children.
const depthVar = "UBLK_TEST_DEPTH"

// survivor returns the exporter of the devices whose volumes are in a
// directory.
func survivor(dir string) (backendtest.Survivor, error) {
	opts := ublk.Options{Dir: dir + ".state"}
	if depth, err := strconv.Atoi(os.Getenv(depthVar)); err == nil {
		opts.Queues, opts.QueueDepth = 1, depth
	}
	return ublk.New(opts)
}

func TestRecovery(t *testing.T) {
	needUBLK(t)
	backendtest.RunRecovery(t, backendtest.Recovery{New: survivor, Kills: *kills, Left: checkNothingLeft})
}

// TestRecoverFullQueue kills processes while each request that the kernel can
// have under way is: it has none to spare by which to notice, and waits until
// that request times out, in 30 s or what an administrator says.
func TestRecoverFullQueue(t *testing.T) {
	needUBLK(t)
	t.Setenv(depthVar, "1")
	tune := func(t *testing.T, disk string) {
		t.Helper()
		timeout := filepath.Join("/sys/block", filepath.Base(disk), "queue/io_timeout")
		if err := os.WriteFile(timeout, []byte("1000"), 0); err != nil { // ms
			t.Fatal(err)
		}
	}
	backendtest.RunRecovery(t, backendtest.Recovery{New: survivor, Tune: tune, Kills: 3, Left: checkNothingLeft})
}

// checkNothingLeft fails if the kernel has devices.
func checkNothingLeft(t *testing.T) {
	t.Helper()
	if left, err := filepath.Glob("/sys/class/ublk-char/*"); len(left) > 0 || err != nil {
		t.Errorf("left: %q, %v", left, err)
	}
}
