// SPDX-License-Identifier: Apache-2.0

package ending_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/internal/ending"
)

// TestFirstReasonCounts, among many that come at once too.
func TestFirstReasonCounts(t *testing.T) {
	e := ending.New()
	select {
	case <-e.Done():
		t.Fatal("it came by itself")
	default:
	}
	if err := e.Err(); err != nil {
		t.Errorf("Err = %v before it came", err)
	}
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			reason := errors.New("one of many")
			e.Come(reason)
			<-e.Done()
		})
	}
	all.Wait()
	first := e.Err()
	e.Come(nil)
	if first == nil || e.Err() != first { //nolint:errorlint // the very same
		t.Errorf("Err = %v, then %v", first, e.Err())
	}
}

// TestNoReason: an end that was asked for has none.
func TestNoReason(t *testing.T) {
	e := ending.New()
	e.Come(nil)
	e.Come(errors.New("late"))
	<-e.Done()
	if err := e.Err(); err != nil {
		t.Errorf("Err = %v", err)
	}
}
