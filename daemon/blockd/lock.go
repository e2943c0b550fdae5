// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"sync"
)

// A keyedMutex is one mutex per key. Its zero value is ready for use.
type keyedMutex struct {
	mu   sync.Mutex
	held map[string]*heldKey
}

type heldKey struct {
	slot  chan struct{} // holds one token while the key is locked
	users int           // holders and waiters; guarded by keyedMutex.mu
}

// lock waits for key until ctx is done and returns what unlocks it.
func (k *keyedMutex) lock(ctx context.Context, key string) (unlock func(), err error) {
	h := k.join(key)
	select {
	case h.slot <- struct{}{}:
		return func() { <-h.slot; k.part(key, h) }, nil
	case <-ctx.Done():
		k.part(key, h)
		return nil, ctx.Err()
	}
}

func (k *keyedMutex) join(key string) *heldKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.held[key]
	if h == nil {
		h = &heldKey{slot: make(chan struct{}, 1)}
		if k.held == nil {
			k.held = make(map[string]*heldKey)
		}
		k.held[key] = h
	}
	h.users++
	return h
}

func (k *keyedMutex) part(key string, h *heldKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(k.held, key)
	}
}
