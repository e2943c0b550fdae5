// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
)

// TestLibrariesOfBody: a program whose own library is huge has its code in that
// one, so what that needs is fetched in whole, as a program's libraries are.
func TestLibrariesOfBody(t *testing.T) {
	d := newDisk(t)
	const size = 1 << 20
	inner := makeELF(size)
	binary.LittleEndian.PutUint32(inner[elfHeader+elfProgram+4:], 5) // executable, not written to
	d.file("/lib/libinner.so", inner)
	d.file("/gap", make([]byte, 2*mergeGap))
	d.file("/lib/libbody.so", makeELF(8<<20, dtNeeded, "libinner.so"))
	d.file("/bin/program", makeELF(0, dtNeeded, "libbody.so"))
	d.watch(t, Options{}, func(v backend.Volume) {
		if d.start(v, "/bin/program"); !d.wasAsked("/lib/libinner.so") {
			t.Error("a library of the program's body was not asked for in whole")
		}
	})
}
