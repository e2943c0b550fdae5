// SPDX-License-Identifier: Apache-2.0

// Package removal has a thing removed once, however often and by however many
// that is asked for.
package removal

import (
	"context"
	"sync"
)

// Once removes something once. A try to do so is shared by all who ask
// meanwhile; what a try has not removed, the next may. The zero value is ready.
type Once struct {
	mu     sync.Mutex // guards latest
	latest *try
}

type try struct {
	done chan struct{}
	err  error // valid once done is closed
	over bool  // the thing is gone, whatever err says
}

// Do calls remove, which reports whether the thing is gone, unless it is gone
// already or a call is under way. It returns what the call it started, joined
// or came after has returned. When ctx is done Do returns, but a call under way
// goes on.
func (o *Once) Do(ctx context.Context, remove func() (over bool, err error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := o.join(remove)
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join returns the try under way or completed, or starts one.
func (o *Once) join(remove func() (bool, error)) *try {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t := o.latest; t != nil {
		select {
		case <-t.done:
			if t.over {
				return t
			}
		default:
			return t
		}
	}
	t := &try{done: make(chan struct{})}
	o.latest = t
	go func() {
		defer close(t.done)
		t.over, t.err = remove()
	}()
	return t
}
