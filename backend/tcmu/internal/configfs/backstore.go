// SPDX-License-Identifier: Apache-2.0

package configfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Params says what a backstore is like.
type Params struct {
	Config         string        // for the reference's handler: a path
	Size           int64         // bytes
	DataArea       int64         // bytes, whole MiB
	CommandTimeout time.Duration // whole seconds; 0 for none
}

// Create makes a backstore, not yet enabled. It fails with fs.ErrExist if
// there is one of this name. After any other error nothing is left.
func (t Tree) Create(b Backstore, p Params) error {
	if err := mkdir(t.hba(b.HBA)); err != nil {
		return err
	}
	dir := t.path(b)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := configure(dir, p); err != nil {
		return errors.Join(err, rmdir(dir))
	}
	return nil
}

func configure(dir string, p Params) error {
	for _, s := range []string{
		"dev_config=" + handler + p.Config,
		fmt.Sprintf("dev_size=%d", p.Size),
		fmt.Sprintf("max_data_area_mb=%d", p.DataArea>>20),
		"hw_block_size=512",
		"nl_reply_supported=1", // wait for the answer, whoever else listens
	} {
		if err := write(s, dir, "control"); err != nil {
			return err
		}
	}
	// It cannot be changed once the disk exists.
	return write(strconv.FormatInt(int64(p.CommandTimeout/time.Second), 10), dir, "attrib", "cmd_time_out")
}

// Enable brings the backstore to life. It waits for the answer to the event
// Added, and for events that are blocked.
func (t Tree) Enable(ctx context.Context, b Backstore) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := write("1", t.path(b), "enable")
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// Enabled reports whether the backstore was brought to life.
func (t Tree) Enabled(b Backstore) bool {
	s, err := read(t.path(b), "enable")
	return err == nil && s == "1"
}

// Destroy removes the backstore; the event Removed is to be answered while it
// waits. All of it may be gone.
func (t Tree) Destroy(b Backstore) error { return rmdir(t.path(b)) }

// DestroyHBA removes the tenant's host bus adapter unless there are devices.
func (t Tree) DestroyHBA(hba int) error {
	err := rmdir(t.hba(hba))
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// Suspend makes the kernel hold back commands, and hand those that were not
// answered back to the initiator, which tries them again. The ring is empty
// afterwards.
func (t Tree) Suspend(b Backstore) error {
	const tryAgain = "1"
	return t.emptyRing(b, tryAgain)
}

// failCommands makes the kernel answer the commands in the ring with an error.
func (t Tree) failCommands(b Backstore) error {
	const fail = "2"
	return errors.Join(t.emptyRing(b, fail), t.Resume(b))
}

func (t Tree) emptyRing(b Backstore, how string) error {
	dir := filepath.Join(t.path(b), "action")
	if err := write("1", dir, "block_dev"); err != nil {
		return err
	}
	return write(how, dir, "reset_ring")
}

// Resume ends Suspend.
func (t Tree) Resume(b Backstore) error { return write("0", t.path(b), "action", "block_dev") }

// Size returns what the initiator takes for the size of the disk, in bytes.
func (t Tree) Size(b Backstore) (int64, error) {
	s, err := read(t.path(b), "attrib", "dev_size")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(s, 10, 64)
}

// Backstores lists what there is of a tenant.
func (t Tree) Backstores(hba int) ([]Backstore, error) {
	dirs, err := os.ReadDir(t.hba(hba))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []Backstore
	for _, d := range dirs {
		if id, ok := strings.CutPrefix(d.Name(), devPrefix); ok && id != "" {
			all = append(all, Backstore{hba, id})
		}
	}
	return all, err
}

// ResetEvents lets go of everyone who waits for an answer to an event. The
// process that was to give it is dead.
func (t Tree) ResetEvents() error {
	dir := filepath.Join(t.Sys, "module", "target_core_user", "parameters")
	if err := write("1", dir, "block_netlink"); err != nil {
		return err
	}
	return errors.Join(write("1", dir, "reset_netlink"), write("0", dir, "block_netlink"))
}

// SetSize sets the size of a backstore that another program is making, in
// bytes.
func (t Tree) SetSize(b Backstore, size int64) error {
	return write(fmt.Sprintf("dev_size=%d", size), t.path(b), "control")
}
