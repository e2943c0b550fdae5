// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Available says what the machine lacks to make devices and to put file
// systems on them, and what to do about it, or nil.
func Available() error { return available("/") }

// available is Available for the machine whose files are below root.
func available(root string) error {
	for _, need := range []struct{ node, module string }{
		{"/dev/fuse", "fuse"},
		{"/dev/loop-control", "loop"},
	} {
		f, err := os.OpenFile(filepath.Join(root, need.node), os.O_RDWR, 0)
		switch {
		case err == nil:
			_ = f.Close()
		case errors.Is(err, os.ErrPermission):
			return fmt.Errorf("no permission to open %s: run as root", need.node)
		default:
			return fmt.Errorf("%s is missing: modprobe %s", need.node, need.module)
		}
	}
	return nil
}
