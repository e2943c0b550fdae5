// SPDX-License-Identifier: Apache-2.0

package configfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A UIO is the device that the ring of a backstore is reached by.
type UIO struct {
	Name   string // uio0
	Node   string // /dev/uio0
	Config string // of the backstore, without the handler
}

// UIO returns the UIO device of that minor number, called name by the kernel,
// and the backstore that it is of. It fails for one that is not ours to serve.
func (t Tree) UIO(minor uint32, name string) (UIO, Backstore, error) {
	return t.uio(fmt.Sprintf("uio%d", minor), name)
}

func (t Tree) uio(device, name string) (UIO, Backstore, error) {
	b, config, err := parseName(name)
	return UIO{Name: device, Node: filepath.Join(t.Dev, device), Config: config}, b, err
}

// FindUIO returns the UIO device of a backstore that is enabled.
func (t Tree) FindUIO(b Backstore) (UIO, error) {
	all, err := os.ReadDir(filepath.Join(t.Sys, "class", "uio"))
	if err != nil {
		return UIO{}, err
	}
	for _, d := range all {
		name, err := read(t.Sys, "class", "uio", d.Name(), "name")
		if err != nil {
			continue // removed meanwhile
		}
		if u, of, err := t.uio(d.Name(), name); err == nil && of == b {
			return u, nil
		}
	}
	return UIO{}, fmt.Errorf("UIO device of device %s: %w", b.ID, os.ErrNotExist)
}

// MapSize returns the size of the memory to map, in bytes.
func (t Tree) MapSize(u UIO) (int, error) {
	s, err := read(t.Sys, "class", "uio", u.Name, "maps", "map0", "size")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(s, 0, 0)
	return int(n), err
}

// parseName takes a name apart that the kernel has put together as
// tcm-user/<hba>/dev_<id>/<handler>/<config>.
func parseName(name string) (b Backstore, config string, err error) {
	part := strings.SplitN(name, "/", 4)
	if len(part) != 4 || part[0] != "tcm-user" {
		return b, "", fmt.Errorf("%q is no TCM user device", name)
	}
	id, isDev := strings.CutPrefix(part[2], devPrefix)
	config, isOurs := strings.CutPrefix(part[3], handler)
	hba, err := strconv.ParseUint(part[1], 10, 31)
	if !isDev || !isOurs || id == "" || err != nil {
		return b, "", fmt.Errorf("%q is another handler's device", name)
	}
	return Backstore{HBA: int(hba), ID: id}, config, nil
}
