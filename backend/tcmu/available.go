// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// modules lists the kernel modules that devices need, each with what shows
// that it is there, loaded or built in.
var modules = []struct{ name, sign string }{
	{"target_core_user", "/sys/module/target_core_user"},
	{"tcm_loop", "/sys/bus/tcm_loop_bus"},
	{"sd_mod", "/sys/bus/scsi/drivers/sd"},
}

// Available says what the machine lacks to make devices, and what to do about
// it, or nil.
func Available() error { return available("/") }

// available is Available for the machine whose files are below root.
func available(root string) error {
	const magic = 0x62656570 // of configfs
	config := filepath.Join(root, "sys/kernel/config")
	for _, m := range modules {
		if _, err := os.Stat(filepath.Join(root, m.sign)); err != nil {
			return fmt.Errorf("kernel module %s is not loaded: modprobe %[1]s", m.name)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(config, &st); err != nil || st.Type != magic {
		return errors.New("configfs is not mounted: mount -t configfs none " + config)
	}
	if err := unix.Access(config+"/target", unix.W_OK); err != nil {
		return fmt.Errorf("no permission to make kernel objects in %s/target: %w: run as root", config, err)
	}
	return nil
}
