// SPDX-License-Identifier: Apache-2.0

package ublk_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
)

var kills = flag.Int("kills", 20, "how often to kill a process that serves a device")

func TestMain(m *testing.M) { backendtest.Main(m, survivor) }

// survivor returns the exporter of the devices whose volumes are in a
// directory.
func survivor(dir string) (backendtest.Survivor, error) {
	return ublk.New(ublk.Options{Dir: dir + ".state"})
}

func TestRecovery(t *testing.T) {
	needUBLK(t)
	backendtest.RunRecovery(t, backendtest.Recovery{New: survivor, Kills: *kills, Left: checkNothingLeft})
}

// checkNothingLeft fails if the kernel has devices.
func checkNothingLeft(t *testing.T) {
	t.Helper()
	if left, err := filepath.Glob("/sys/class/ublk-char/*"); len(left) > 0 || err != nil {
		t.Errorf("left: %q, %v", left, err)
	}
}
