// SPDX-License-Identifier: Apache-2.0

package ublk_test

import (
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// The tests of this package that need the kernel run in a guest: make test-vm.

func TestConformance(t *testing.T) {
	needUBLK(t)
	backendtest.Run(t, func(t *testing.T) backend.Exporter { return newExporter(t, ublk.Options{}) })
}

// TestConformanceOld does without what the driver has learnt since it was new.
func TestConformanceOld(t *testing.T) {
	needUBLK(t)
	backendtest.Run(t, func(t *testing.T) backend.Exporter {
		e, err := ublk.NewOld(ublk.Options{Dir: t.TempDir()})
		return closed(t, e, err)
	})
}

func needUBLK(t testing.TB) {
	t.Helper()
	need.Capability(t, "ublk", ublk.Available())
}

// newExporter returns an exporter that is closed when the test ends.
func newExporter(t testing.TB, opts ublk.Options) *ublk.Exporter {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	e, err := ublk.New(opts)
	return closed(t, e, err)
}

func closed(t testing.TB, e *ublk.Exporter, err error) *ublk.Exporter {
	t.Helper()
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
