// SPDX-License-Identifier: Apache-2.0

// Package roster knows the devices of an exporter by their ids, from before
// the kernel knows of them until they are gone.
package roster

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"
)

// A Roster holds devices. The zero value is ready.
type Roster[D comparable] struct {
	mu      sync.Mutex // guards all below
	devices map[string]D
	closed  bool
	making  sync.WaitGroup // adds to it only while not closed
}

// Add takes the id for a device that is about to be made, or taken over, and
// returns what to call when that has come to its end, well or not. It fails
// with fs.ErrExist where the id is taken, and with fs.ErrClosed after Close.
func (r *Roster[D]) Add(id string, d D) (made func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fs.ErrClosed
	}
	if _, ok := r.devices[id]; ok {
		return nil, fs.ErrExist
	}
	if r.devices == nil {
		r.devices = make(map[string]D)
	}
	r.devices[id] = d
	r.making.Add(1)
	return r.making.Done, nil
}

// Drop frees the id, unless it is another device's by now.
func (r *Roster[D]) Drop(id string, d D) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.devices[id] == d {
		delete(r.devices, id)
	}
}

// Get returns the device that has the id, or the zero value.
func (r *Roster[D]) Get(id string) D {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.devices[id]
}

// Close lets no device be added any more, waits for those that are being made,
// and calls f for each, all at once. It may be called again.
func (r *Roster[D]) Close(f func(D) error) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.making.Wait()

	r.mu.Lock()
	devices := slices.Collect(maps.Values(r.devices))
	r.mu.Unlock()
	return Each(devices, len(devices), f)
}

// Each calls f for all, at most limit at a time, and returns the errors.
func Each[T any](all []T, limit int, f func(T) error) error {
	errs := make([]error, len(all))
	turn := make(chan struct{}, limit)
	var wg sync.WaitGroup
	for i, x := range all {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			errs[i] = f(x)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
