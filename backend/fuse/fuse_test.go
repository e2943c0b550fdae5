// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func TestConformance(t *testing.T) {
	need.FUSE(t)
	backendtest.Run(t, func(t *testing.T) backend.Exporter { return newExporter(t) })
}

func newExporter(t testing.TB) *fuse.Exporter {
	t.Helper()
	e, err := fuse.New(fuse.Options{Dir: t.TempDir()})
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
