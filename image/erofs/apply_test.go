// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/build"
	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/ext4"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestApplyAsOnExt4 unpacks layers onto EROFS and onto ext4, which is compared
// with what containerd unpacks.
func TestApplyAsOnExt4(t *testing.T) {
	dir, _ := need.Golden(t, "tars/l?.tar")
	const size = 1 << 30
	c, plain := newLayers(size, false), newFile(t, size)
	if err := ext4.Format(t.Context(), plain, ext4.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	old := must(ext4.Open(t.Context(), plain))
	if err := old.Remove(t.Context(), old.Root(), "lost+found"); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"l0.tar", "l1.tar", "l2.tar"} {
		if i == 0 {
			format(t, c.top())
		}
		f := open(t, c.top())
		for _, apply := range []func(*os.File) error{
			func(r *os.File) error { return build.Apply(t.Context(), f, r) },
			func(r *os.File) error { return build.Apply(t.Context(), old, r) },
		} {
			r := must(os.Open(filepath.Join(dir, "tars", name)))
			err := apply(r)
			r.Close()
			if err != nil {
				t.Fatal(name, ": ", err)
			}
		}
		flush(t, f)
		if err := c.next(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := must(describeFS(t.Context(), old, old.Root(), "/"))
		r := must(erofs.NewReader(t.Context(), must(c.disk(t.Context(), false))))
		if err := sameLines(must(describeFS(t.Context(), r, r.Root(), "/")), want); err != nil {
			t.Error(name, ": ", err)
		}
		t.Log(name, ": a layer of ", len(c.done[i].file))
	}
}
