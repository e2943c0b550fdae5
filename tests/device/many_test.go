// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
)

// TestMany attaches a hundred devices at once, each with bytes of its own,
// reads them, and removes them at once.
func TestMany(t *testing.T) {
	const devices = 100
	each(t, func(t *testing.T, k kind) {
		e := k.exporter(t)
		start := time.Now()
		var attached, removed sync.WaitGroup
		attached.Add(devices)
		for i := range devices {
			removed.Go(func() {
				err := attach(t, e, i, func() {
					attached.Done()
					attached.Wait()
				})
				if err != nil {
					t.Errorf("device %d: %v", i, err)
				}
			})
		}
		attached.Wait()
		all := time.Since(start)
		removed.Wait()
		t.Logf("%d devices attached in %v, removed in %v", devices, all.Round(time.Millisecond), (time.Since(start) - all).Round(time.Millisecond))
	})
}

// attach has a device with a mark of its own, calls meet when it was read, and
// removes it.
func attach(t *testing.T, e exporter, i int, meet func()) error {
	v := backendtest.NewMemVolume(1 << 20)
	mark := bytes.Repeat([]byte{byte(i + 1)}, 512)
	if _, err := v.WriteAt(t.Context(), mark, 4096); err != nil {
		return err
	}
	d, err := e.Export(t.Context(), fmt.Sprint(i), v)
	if err != nil {
		meet()
		return err
	}
	got, err := readAt(d.Path(), 4096, 512)
	if err == nil && !bytes.Equal(got, mark) {
		err = fmt.Errorf("%s has another's bytes", d.Path())
	}
	meet()
	return errors.Join(err, d.Remove(t.Context()))
}
