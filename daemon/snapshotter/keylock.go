// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"sync"
)

// A keyLock is a set of locks by name. Its zero value is ready.
type keyLock struct {
	mu   sync.Mutex // guards held
	held map[string]*waiting
}

// waiting is one lock: the channel holds a token while it is taken.
type waiting struct {
	token chan struct{}
	refs  int // holder and waiters
}

// lock takes the lock of key, or gives up when ctx is done.
func (l *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	w := l.join(key)
	select {
	case w.token <- struct{}{}:
		return func() {
			<-w.token
			l.leave(key, w)
		}, nil
	case <-ctx.Done():
		l.leave(key, w)
		return nil, ctx.Err()
	}
}

func (l *keyLock) join(key string) *waiting {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.held[key]
	if w == nil {
		w = &waiting{token: make(chan struct{}, 1)}
		if l.held == nil {
			l.held = make(map[string]*waiting)
		}
		l.held[key] = w
	}
	w.refs++
	return w
}

func (l *keyLock) leave(key string, w *waiting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.refs--; w.refs == 0 {
		delete(l.held, key)
	}
}
