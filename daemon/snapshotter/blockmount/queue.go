// SPDX-License-Identifier: Apache-2.0

package blockmount

import (
	"os"
	"path/filepath"
)

// readAhead is, in KiB, what a file read in order has under way at a time, and
// what a page fault brings in: the kernel's default. With 512 and 1024 neither
// trees nor large files were read faster, and faults would bring in what nobody
// has asked for: of an image that is far away, NumPy's start reads 13.3 MB of the
// layers with 128, 14.5 MB with 256 and 18.7 MB with 2560.
const readAhead = "128"

// setReadAhead says what the kernel reads ahead of the loop device node. It has
// to: the kernel makes that larger for some files, and never smaller again, so
// that it stays with the number of a device for whoever gets it next. A sysfs
// that cannot be written to is no reason not to mount.
func setReadAhead(node string) {
	_ = os.WriteFile(filepath.Join("/sys/block", filepath.Base(node), "queue", "read_ahead_kb"), []byte(readAhead), 0)
}
