// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/uring"
)

// Available says what the machine lacks to make devices, and what to do about
// it, or nil.
func Available() error { return available("/") }

// available is Available for the machine whose files are below root.
func available(root string) error {
	k, err := driver.Open(filepath.Join(root, driver.ControlPath))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Join(root, "sys/module/ublk_drv")); err != nil {
			return errors.New("kernel module ublk_drv is not loaded: modprobe ublk_drv")
		}
		return err
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to make ublk devices: %w: run as root", err)
	case err != nil:
		return err
	}
	return errors.Join(ringsAvailable(), k.Close())
}

// ringsAvailable says why there can be no io_uring.
func ringsAvailable() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := uring.New(1)
	if err == nil {
		return r.Close()
	}
	const setting = "/proc/sys/kernel/io_uring_disabled"
	if b, e := os.ReadFile(setting); e == nil && !bytes.HasPrefix(b, []byte("0")) {
		return fmt.Errorf("io_uring is disabled: %w: sysctl kernel.io_uring_disabled=0", err)
	}
	return err
}
