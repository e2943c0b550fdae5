// SPDX-License-Identifier: Apache-2.0

package backendtest_test

import (
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
)

func TestMemVolume(t *testing.T) {
	backendtest.RunVolume(t, func(_ *testing.T, size int64) backend.Writer {
		return backendtest.NewMemVolume(size)
	})
}

func TestFaultVolume(t *testing.T) {
	backendtest.RunVolume(t, func(_ *testing.T, size int64) backend.Writer {
		return backendtest.NewFaultVolume(backendtest.NewMemVolume(size))
	})
}
