// SPDX-License-Identifier: Apache-2.0

package ublk_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/ublk"
)

// TestUnavailable asks for devices where there can be none.
func TestUnavailable(t *testing.T) {
	if _, err := os.Stat("/sys/module/ublk_drv"); !errors.Is(err, fs.ErrNotExist) {
		t.Skip("the kernel has the driver")
	}
	_, err := ublk.New(ublk.Options{Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "ublk_drv is not loaded") {
		t.Errorf("New without the driver = %v, want an error that names the module", err)
	}
}
