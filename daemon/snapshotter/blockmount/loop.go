// SPDX-License-Identifier: Apache-2.0

package blockmount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	loopBlockSize = 512 // bytes: the sector of the devices that files stand in for

	// loopPatience bounds the race for a free loop device: between the kernel
	// naming one and it being configured, another process may take it, and on a
	// busy machine its node is a while in coming or going.
	loopPatience = 10 * time.Second
	loopPause    = time.Millisecond
)

// openLoop returns a loop device that serves the file path, open: the one that
// a file system on that file is mounted from already, or a new one that lasts
// until its last user closes it. A mount may be out of sight and alive, in a
// container; a second file system on the same bytes would not know of what that
// one has yet to write.
func openLoop(path string, readOnly bool) (*os.File, error) {
	loop, err := findLoop(path, func(flags uint32) bool {
		return (flags&unix.LO_FLAGS_READ_ONLY != 0) == readOnly
	})
	if loop != nil || err != nil {
		return loop, err
	}
	return attachLoop(path, readOnly, unix.LO_FLAGS_AUTOCLEAR)
}

// attachLoop puts the file path on a free loop device and returns that, open:
// with LO_FLAGS_AUTOCLEAR the device lasts until its last user closes it.
//
// A read-only device reads its file with direct I/O, which has many reads under
// way at a time instead of one: BenchmarkRead of backend/fuse, where it is 1.1
// to 2.3 times faster. A writable one goes the way that is proven: direct writes
// gained nothing.
func attachLoop(path string, readOnly bool, flags uint32) (*os.File, error) {
	mode := os.O_RDWR
	if readOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY|unix.LO_FLAGS_DIRECT_IO
	}
	backing, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	cfg := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: loopBlockSize}
	cfg.Info.Flags = flags
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], path)

	for deadline := time.Now().Add(loopPatience); ; time.Sleep(loopPause) {
		loop, err := configureFree(&cfg, mode)
		if err == nil {
			setQueue(loop.Name())
			return loop, nil
		}
		// ENXIO and ENOENT: the node is being made or unmade.
		raced := errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT)
		if !raced || time.Now().After(deadline) {
			return nil, fmt.Errorf("set up loop device: %w", err)
		}
	}
}

func configureFree(cfg *unix.LoopConfig, mode int) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
	}
	loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), cfg); err != nil {
		_ = loop.Close()
		return nil, os.NewSyscallError("LOOP_CONFIGURE", err)
	}
	return loop, nil
}

// AttachLoop returns a loop device serving the file path, and makes one that
// lasts until [DetachLoop] if there is none: for a device handed to someone
// else, who opens it later.
func AttachLoop(path string) (string, error) {
	loop, err := findLoop(path, func(flags uint32) bool {
		return flags&(unix.LO_FLAGS_READ_ONLY|unix.LO_FLAGS_AUTOCLEAR) == 0
	})
	if loop == nil && err == nil {
		loop, err = attachLoop(path, false, 0)
	}
	if err != nil {
		return "", err
	}
	return loop.Name(), loop.Close()
}

// findLoop returns a loop device that serves the file path and has flags that
// suit, open, or nil where there is none.
func findLoop(path string, suit func(flags uint32) bool) (*os.File, error) {
	nodes, err := loopsOf(path)
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		loop, err := os.Open(node)
		if err != nil {
			continue // gone meanwhile
		}
		// Asked of the open device, which cannot be freed any more.
		if flags, ok := serves(loop, path); ok && suit(flags) {
			return loop, nil
		}
		_ = loop.Close()
	}
	return nil, nil
}

// serves returns the flags of loop, and whether it serves the file that path
// names now, and not one that had the name before it.
func serves(loop *os.File, path string) (flags uint32, ok bool) {
	info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
	if err != nil {
		return 0, false
	}
	var st unix.Stat_t
	err = unix.Stat(path, &st)
	return info.Flags, err == nil && info.Device == st.Dev && info.Inode == st.Ino
}

// DetachLoop frees every loop device that serves the file path, or one that had
// the name before. One in use disappears with its last user.
func DetachLoop(path string) error {
	nodes, err := loopsOf(path)
	for _, node := range nodes {
		err = errors.Join(err, clearLoop(node))
	}
	return err
}

func clearLoop(node string) error {
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("free loop device %s: %w", node, err)
	}
	return nil
}

// loopsOf lists the loop devices whose file has, or had, the name path.
func loopsOf(path string) ([]string, error) {
	attrs, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, attr := range attrs {
		text, err := os.ReadFile(attr) // gone meanwhile, it serves no file
		if err == nil && strings.TrimSuffix(string(text), "\n") == path {
			nodes = append(nodes, "/dev/"+strings.Split(attr, "/")[3])
		}
	}
	return nodes, nil
}
