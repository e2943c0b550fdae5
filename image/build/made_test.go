// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// TestTooManyLinks: names of files of lower layers take memory, so that there
// is an end to them; names of the layer's own files do not.
func TestTooManyLinks(t *testing.T) {
	m := newMade()
	m.files.add(12)
	name := make([]byte, 3)
	link := func(i int, ino vfs.Ino) error {
		name[0], name[1], name[2] = byte(i), byte(i>>8), byte(i>>16)
		return m.addLink(2, string(name), ino)
	}
	for i := range maxLinks {
		if err := errors.Join(link(i, 12), link(i, 13)); err != nil {
			t.Fatal(err)
		}
	}
	if err := link(maxLinks, 12); err != nil {
		t.Error(err)
	}
	if err := link(maxLinks, 13); !errors.Is(err, ErrUnsafe) {
		t.Errorf("error %v", err)
	}
}

func TestInoSet(t *testing.T) {
	var s inoSet
	for _, ino := range []vfs.Ino{0, 63, 64, 1000} {
		if s.has(ino) {
			t.Errorf("%d is in the empty set", ino)
		}
		s.add(ino)
	}
	s.add(65)
	s.remove(65)
	s.remove(66)
	s.remove(5000)
	for ino := range vfs.Ino(2000) {
		want := ino == 0 || ino == 63 || ino == 64 || ino == 1000
		if s.has(ino) != want {
			t.Errorf("%d is in the set: %t", ino, !want)
		}
	}
}
