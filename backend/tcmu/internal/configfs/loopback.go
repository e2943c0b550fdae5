// SPDX-License-Identifier: Apache-2.0

package configfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A Disk is the SCSI disk of a backstore.
type Disk struct {
	Name string // sda
	Node string // /dev/sda
	Dev  uint64 // its device number

	sys string // of the SCSI device
}

// Attach makes the loopback target that leads to the backstore, which is
// enabled. The kernel looks for the disk's properties meanwhile. What is left
// after an error Detach removes.
func (t Tree) Attach(b Backstore) error {
	for _, wwn := range wwns(b) {
		dir := filepath.Join(t.Target, "loopback", wwn)
		if err := mkdir(filepath.Dir(dir)); err != nil {
			return err
		}
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue // another tenant's
		}
		if err != nil {
			return err
		}
		return t.attach(b, dir, wwn)
	}
	return fmt.Errorf("loopback targets %q are in use", wwns(b))
}

func (t Tree) attach(b Backstore, dir, wwn string) error {
	group := filepath.Join(dir, portGroup)
	if err := mkdir(group); err != nil {
		return err
	}
	if err := write(wwn, group, "nexus"); err != nil {
		return err
	}
	if err := mkdir(group, "lun", lun); err != nil {
		return err
	}
	link := filepath.Join(group, "lun", lun, devPrefix+b.ID)
	if err := await(b, func() error { return unix.Symlink(t.path(b), link) }); err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	return nil
}

// target returns the directory of b's loopback target. It is false if there is
// none that leads to b.
func (t Tree) target(b Backstore) (dir string, linked bool) {
	for _, wwn := range wwns(b) {
		dir := filepath.Join(t.Target, "loopback", wwn)
		if _, err := os.Lstat(filepath.Join(dir, portGroup, "lun", lun, devPrefix+b.ID)); err == nil && t.leadsTo(dir, b) {
			return dir, true
		}
	}
	return "", false
}

// leadsTo reports whether the link in a loopback target is to b, and not to
// another tenant's device of the same id.
func (t Tree) leadsTo(dir string, b Backstore) bool {
	to, err := os.Readlink(filepath.Join(dir, portGroup, "lun", lun, devPrefix+b.ID))
	return err == nil && filepath.Base(filepath.Dir(to)) == hbaPrefix+strconv.Itoa(b.HBA)
}

// Attached reports whether a loopback target leads to the backstore.
func (t Tree) Attached(b Backstore) bool {
	_, ok := t.target(b)
	return ok
}

// Detach removes the disk and its loopback target, or what there is of them.
// It waits for commands under way.
func (t Tree) Detach(b Backstore) error {
	if dir, ok := t.target(b); ok {
		link := filepath.Join(dir, portGroup, "lun", lun, devPrefix+b.ID)
		err := await(b, func() error { return unix.Unlink(link) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unlink %s: %w", link, err)
		}
		return t.removeTarget(dir)
	}
	for _, wwn := range wwns(b) {
		dir := filepath.Join(t.Target, "loopback", wwn)
		if unused(dir) {
			if err := t.removeTarget(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// unused reports whether a loopback target leads nowhere: its making or its
// removal was cut short.
func unused(dir string) bool {
	links, err := filepath.Glob(filepath.Join(dir, portGroup, "lun", "lun_*", devPrefix+"*"))
	return err == nil && len(links) == 0
}

func (t Tree) removeTarget(dir string) error {
	group := filepath.Join(dir, portGroup)
	for _, object := range []string{filepath.Join(group, "lun", lun), group, dir} {
		if err := rmdir(object); err != nil {
			return err
		}
	}
	return nil
}

// FindDisk waits until the kernel has made the disk and its node, and the disk
// can be opened. It looks for partitions first, and thus reads.
func (t Tree) FindDisk(ctx context.Context, b Backstore) (Disk, error) {
	dir, ok := t.target(b)
	if !ok {
		return Disk{}, fmt.Errorf("loopback target of device %s: %w", b.ID, fs.ErrNotExist)
	}
	address, err := read(dir, portGroup, "address")
	if err != nil {
		return Disk{}, err
	}
	if !scsiAddress.MatchString(address) {
		return Disk{}, fmt.Errorf("SCSI address %q of device %s", address, b.ID)
	}
	sys := filepath.Join(t.Sys, "class", "scsi_device", address+":0", "device")
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if d, ok := t.disk(sys); ok {
			return d, d.waitOpen(ctx, b)
		}
		if !t.Attached(b) {
			return Disk{}, fmt.Errorf("loopback target of device %s was removed: %w", b.ID, fs.ErrNotExist)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Disk{}, fmt.Errorf("wait for the disk at %s: %w", address, ctx.Err())
		}
	}
}

// waitOpen waits until the disk can be opened. That itself waits, unkillable,
// while the disk does not answer.
func (d Disk) waitOpen(ctx context.Context, b Backstore) error {
	opened := make(chan error, 1)
	go func() { opened <- await(b, func() error { return d.open(ctx) }) }()
	select {
	case err := <-opened:
		return err
	case <-ctx.Done():
		return fmt.Errorf("open %s: %w", d.Node, ctx.Err())
	}
}

// open opens the disk once. Its node comes just before it.
func (d Disk) open(ctx context.Context) error {
	for {
		fd, err := unix.Open(d.Node, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			return unix.Close(fd)
		}
		if !errors.Is(err, unix.ENXIO) || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// scsiAddress is host, channel and target.
var scsiAddress = regexp.MustCompile(`^\d+:\d+:\d+$`)

// disk returns the disk of the SCSI device once there is a node for it.
func (t Tree) disk(sys string) (Disk, bool) {
	names, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil || len(names) != 1 {
		return Disk{}, false
	}
	d := Disk{Name: names[0].Name(), Node: filepath.Join(t.Dev, names[0].Name()), sys: sys}
	number, err := read(sys, "block", d.Name, "dev")
	if err != nil {
		return Disk{}, false
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(number, "%d:%d", &major, &minor); err != nil {
		return Disk{}, false
	}
	d.Dev = unix.Mkdev(major, minor)
	var st unix.Stat_t
	if err := unix.Stat(d.Node, &st); err != nil || st.Rdev != d.Dev || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Disk{}, false
	}
	return d, true
}

// SetTimeout sets for how long the SCSI layer waits for a command before it
// resets the disk.
func (d Disk) SetTimeout(timeout time.Duration) error {
	return write(strconv.FormatInt(int64(timeout/time.Second), 10), d.sys, "timeout")
}

// SetQueueDepth sets how many commands the SCSI layer has under way.
func (d Disk) SetQueueDepth(n int) error {
	return write(strconv.Itoa(n), d.sys, "queue_depth")
}
