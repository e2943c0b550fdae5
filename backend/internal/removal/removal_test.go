// SPDX-License-Identifier: Apache-2.0

package removal_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/internal/removal"
)

var errBusy = errors.New("busy")

// TestRetry asks for a removal that fails, and again: it is tried again, until
// the thing is gone, and then never more.
func TestRetry(t *testing.T) {
	var once removal.Once
	errClose := errors.New("gone, but something went wrong")
	results := []struct {
		over bool
		err  error
	}{{false, errBusy}, {false, errBusy}, {true, errClose}}
	calls := 0
	remove := func() (bool, error) {
		r := results[calls]
		calls++
		return r.over, r.err
	}
	for i, want := range []error{errBusy, errBusy, errClose, errClose, errClose} {
		if err := once.Do(t.Context(), remove); !errors.Is(err, want) {
			t.Errorf("call %d returns %v, want %v", i, err, want)
		}
	}
	if calls != len(results) {
		t.Errorf("removed %d times, want %d", calls, len(results))
	}
}

// TestShare has many ask at once: all get the result of one try.
func TestShare(t *testing.T) {
	var (
		once    removal.Once
		wg      sync.WaitGroup
		calls   int
		release = make(chan struct{})
	)
	remove := func() (bool, error) {
		calls++
		<-release
		return true, nil
	}
	for range 8 {
		wg.Go(func() {
			if err := once.Do(t.Context(), remove); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	if calls != 1 {
		t.Errorf("removed %d times, want once", calls)
	}
}

// TestContext gives up waiting, which leaves the try alone.
func TestContext(t *testing.T) {
	var once removal.Once
	entered, release := make(chan struct{}), make(chan struct{})
	remove := func() (bool, error) {
		close(entered)
		<-release
		return true, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	if err := once.Do(ctx, remove); !errors.Is(err, context.Canceled) {
		t.Errorf("Do = %v, want context.Canceled", err)
	}
	if err := once.Do(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Do with a done context = %v, want context.Canceled", err)
	}
	close(release)
	if err := once.Do(t.Context(), nil); err != nil {
		t.Errorf("Do after the removal = %v", err)
	}
}
