// SPDX-License-Identifier: Apache-2.0

package blockmount

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"
)

// modprobeTimeout bounds loading a module from local disk.
const modprobeTimeout = 10 * time.Second

// Supported reports whether the kernel has the file system fs, whose module it
// loads if there is one.
func Supported(fs string) bool {
	if listed(fs) {
		return true
	}
	if _, ok := byType(fs); !ok {
		return false // never a stranger's word to modprobe
	}
	ctx, cancel := context.WithTimeout(context.Background(), modprobeTimeout)
	defer cancel()
	return exec.CommandContext(ctx, "modprobe", fs).Run() == nil && listed(fs)
}

// listed reports whether fs is in /proc/filesystems, as "\tname" or
// "nodev\tname".
func listed(fs string) bool {
	table, _ := os.ReadFile("/proc/filesystems")
	for line := range strings.Lines(string(table)) {
		if _, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); name == fs {
			return true
		}
	}
	return false
}
