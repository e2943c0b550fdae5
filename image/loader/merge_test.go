// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
)

// TestManyAreFewRequests: more files than can be asked for at once come with what
// lies between them.
func TestManyAreFewRequests(t *testing.T) {
	d := newDisk(t)
	var needed []any
	for i := range 12 {
		name := fmt.Sprintf("lib%d.so", i)
		needed = append(needed, dtNeeded, name)
		d.file("/lib/"+name, makeELF(0))
		d.file(fmt.Sprintf("/gap%d", i), make([]byte, 2*mergeGap))
	}
	d.file("/bin/program", makeELF(0, needed...))
	d.watch(t, Options{Parallel: 11}, func(v backend.Volume) {
		d.start(v, "/bin/program")
		if n := d.requests(); n != 3 || !d.wasAsked("/lib/lib11.so") { // the rest of the program, inodes, the libraries
			t.Errorf("%d requests", n)
		}
	})
}
