// SPDX-License-Identifier: Apache-2.0

package tcmu_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
)

var kills = flag.Int("kills", 20, "how often to kill a process that serves a device")

func TestMain(m *testing.M) { backendtest.Main(m, survivor) }

func survivor(string) (backendtest.Survivor, error) { return tcmu.New(tcmu.Options{}) }

func TestRecovery(t *testing.T) {
	needTCMU(t)
	backendtest.RunRecovery(t, backendtest.Recovery{New: survivor, Kills: *kills, Left: checkNothingLeft})
}

// checkNothingLeft fails if there are kernel objects.
func checkNothingLeft(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{
		"/sys/kernel/config/target/core/user_*",
		"/sys/kernel/config/target/loopback/naa.*",
		"/sys/class/uio/uio*",
	} {
		if left, err := filepath.Glob(pattern); len(left) > 0 || err != nil {
			t.Errorf("left: %q, %v", left, err)
		}
	}
}
