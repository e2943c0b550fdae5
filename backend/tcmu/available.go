// SPDX-License-Identifier: Apache-2.0

package tcmu

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Available says what the machine lacks to make devices, or nil: a kernel
// module, configfs, or the permission.
func Available() error {
	const (
		config = "/sys/kernel/config"
		magic  = 0x62656570 // of configfs
	)
	var st unix.Statfs_t
	if err := unix.Statfs(config, &st); err != nil || st.Type != magic {
		return errors.New("configfs is not mounted at " + config)
	}
	for _, m := range []string{"target_core_user", "tcm_loop", "sd_mod"} {
		if _, err := os.Stat("/sys/module/" + m); err != nil {
			return fmt.Errorf("kernel module %s is not loaded", m)
		}
	}
	if err := unix.Access(config+"/target", unix.W_OK); err != nil {
		return fmt.Errorf("no permission to make kernel objects in %s/target: %w", config, err)
	}
	return nil
}
