// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"testing"

	"github.com/overlaybd-go/overlaybd/cache"
)

// TestMemo: readers of one content share what they keep while one of them is
// there.
func TestMemo(t *testing.T) {
	c := openCache(t, cache.Options{})
	data := content(100)
	open := func(name string) *cache.Blob { return openBlob(t, c, name, newSource(data)) }
	a, b, other := open("x"), open("x"), open("y")
	a.Memo().Store("key", 1)
	if _, ok := b.Memo().Load("key"); !ok {
		t.Error("not shared by another reader")
	}
	if _, ok := other.Memo().Load("key"); ok {
		t.Error("shared by a reader of something else")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.Memo().Load("key"); !ok {
		t.Error("gone with the first reader")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := open("x").Memo().Load("key"); ok {
		t.Error("still there when nobody was")
	}
}
