// SPDX-License-Identifier: Apache-2.0

package blockmount

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Make puts the empty file system fs on dev.
func Make(ctx context.Context, dev Device, fs FS) error {
	node := dev.Path
	if dev.File {
		loop, err := attachLoop(dev.Path, false, unix.LO_FLAGS_AUTOCLEAR)
		if err != nil {
			return err
		}
		defer loop.Close()
		node = loop.Name()
	}
	tool, err := findTool("mkfs." + fs.Type)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, tool, append(append([]string{}, fs.Mkfs...), node)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s on %s: %w: %s", tool, dev.Path, err, bytes.TrimSpace(out))
	}
	return nil
}

// findTool looks for an administrator's tool, which a service's PATH may miss.
func findTool(name string) (tool string, err error) {
	for _, dir := range []string{"", "/usr/sbin", "/sbin"} {
		if tool, err = exec.LookPath(filepath.Join(dir, name)); err == nil {
			return tool, nil
		}
	}
	return "", err
}
