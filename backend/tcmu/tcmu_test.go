// SPDX-License-Identifier: Apache-2.0

package tcmu_test

import (
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// The tests of this package that need the kernel run in a guest: make test-vm.

func TestConformance(t *testing.T) {
	needTCMU(t)
	backendtest.Run(t, func(t *testing.T) backend.Exporter { return newExporter(t, tcmu.Options{}) })
}

func needTCMU(t testing.TB) {
	t.Helper()
	need.Capability(t, "tcmu", tcmu.Available())
}

func newExporter(t testing.TB, opts tcmu.Options) *tcmu.Exporter {
	t.Helper()
	e, err := tcmu.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}
