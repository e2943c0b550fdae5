// SPDX-License-Identifier: Apache-2.0

// Package configfs makes, finds and removes the kernel objects of TCM user
// devices. One device is a backstore and a loopback target:
//
//	target/core/user_<hba>/dev_<id>              the backstore: control, enable, attrib/, action/
//	target/loopback/<wwn>/tpgt_1/lun/lun_0/dev_<id>  a link to it, which makes the SCSI disk
//
// The names are the reference's, so that either finds what the other made.
//
// The one thing to know: these are not files. A mkdir makes an object in the
// kernel, and may wait for someone's answer; objects are removed one by one,
// from the leaves, and never with all that is below them.
package configfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// defaultHBA is the reference's number of the host bus adapter of devices
	// that belong to no tenant.
	defaultHBA = 999999999

	// defaultPrefix starts the names of their loopback targets.
	defaultPrefix = 199

	hbaPrefix = "user_"
	devPrefix = "dev_"
	portGroup = "tpgt_1"
	lun       = "lun_0"

	// handler starts the configuration of a device that is ours to serve.
	handler = "overlaybd/"

	// MaxConfig is how long the configuration of a device may be, in bytes;
	// the kernel's limit is 256 with what comes before and after.
	MaxConfig = 255 - len(handler)

	// MaxID is how long an id may be, in bytes: a file name with what comes
	// before.
	MaxID = unix.NAME_MAX - len(devPrefix)
)

// A Tree is where the kernel shows its objects.
type Tree struct {
	Target string // of target core in configfs
	Sys    string // sysfs
	Dev    string // device nodes
	Proc   string // processes
}

// Kernel is the tree of the running kernel.
var Kernel = Tree{Target: "/sys/kernel/config/target", Sys: "/sys", Dev: "/dev", Proc: "/proc"}

// A Backstore names a device among those of the kernel.
type Backstore struct {
	HBA int
	ID  string
}

// HBAOf returns the host bus adapter of a tenant; 0 is no tenant.
func HBAOf(tenant int) int {
	if tenant == 0 {
		return defaultHBA
	}
	return tenant
}

func (t Tree) hba(hba int) string {
	return filepath.Join(t.Target, "core", hbaPrefix+strconv.Itoa(hba))
}

// path returns the backstore's directory.
func (t Tree) path(b Backstore) string { return filepath.Join(t.hba(b.HBA), devPrefix+b.ID) }

// wwns returns the names that the loopback target of b may have, the first one
// preferred. It is the reference's for an id of up to 13 digits. That of
// tenants whose numbers end in the same two digits is the same, and there is
// none for other ids: a name that nothing else has is then made by hashing.
func wwns(b Backstore) []string {
	prefix := defaultPrefix
	if b.HBA != defaultHBA {
		prefix = b.HBA%100 + 100
	}
	const digits = 13
	var names []string
	if len(b.ID) <= digits && strings.Trim(b.ID, "0123456789") == "" {
		names = append(names, fmt.Sprintf("naa.%d%s%s", prefix, strings.Repeat("0", digits-len(b.ID)), b.ID))
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d/%s", b.HBA, b.ID))
	return append(names, fmt.Sprintf("naa.%d%s", prefix, hex.EncodeToString(sum[:])[:digits]))
}

// write sets an attribute. It creates nothing.
func write(value string, path ...string) error {
	name := filepath.Join(path...)
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	_, err = unix.Write(fd, []byte(value))
	if err != nil {
		err = fmt.Errorf("write %q to %s: %w", value, name, err)
	}
	return errors.Join(err, unix.Close(fd))
}

func read(path ...string) (string, error) {
	b, err := os.ReadFile(filepath.Join(path...))
	return strings.TrimSpace(string(b)), err
}

// mkdir makes an object that may exist.
func mkdir(path ...string) error {
	if err := os.Mkdir(filepath.Join(path...), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// rmdir removes an object that may be gone. It is rmdir(2) and nothing else:
// what unlink(2) does to a directory of configfs is not worth knowing.
func rmdir(path ...string) error {
	name := filepath.Join(path...)
	err := unix.Rmdir(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rmdir %s: %w", name, err)
	}
	return nil
}
