// SPDX-License-Identifier: Apache-2.0

// Package ending tells, once and for all who ask, that something has ended and
// why.
package ending

import "sync"

// An Ending comes once. New makes one.
type Ending struct {
	once sync.Once
	done chan struct{}
	err  error // valid once done is closed
}

// New returns an Ending that has not come.
func New() *Ending { return &Ending{done: make(chan struct{})} }

// Come makes it come; the first reason given counts, and nil is one.
func (e *Ending) Come(err error) {
	e.once.Do(func() {
		e.err = err
		close(e.done)
	})
}

// Done is closed when it has come.
func (e *Ending) Done() <-chan struct{} { return e.done }

// Err returns why it has come; nil before that.
func (e *Ending) Err() error {
	select {
	case <-e.done:
		return e.err
	default:
		return nil
	}
}
