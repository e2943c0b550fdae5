// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A foreign device is made as the reference's attacher does.
type foreign struct {
	dev, wwn, link string
}

const targets = "/sys/kernel/config/target"

func makeForeign(t *testing.T, id, config string) foreign {
	t.Helper()
	f := foreign{
		dev: filepath.Join(targets, "core/user_999999999/dev_"+id),
		wwn: filepath.Join(targets, "loopback/naa.199"+strings.Repeat("0", 13-len(id))+id),
	}
	f.link = filepath.Join(f.wwn, "tpgt_1/lun/lun_0/dev_"+id)
	mkdir(t, f.dev)
	set(t, "dev_config=overlaybd/"+config, f.dev, "control")
	set(t, "max_data_area_mb=4", f.dev, "control")
	set(t, "1", f.dev, "enable")
	set(t, "2147483", f.dev, "attrib/cmd_time_out")
	mkdir(t, filepath.Dir(f.link))
	set(t, filepath.Base(f.wwn), f.wwn, "tpgt_1/nexus")
	if err := os.Symlink(f.dev, f.link); err != nil {
		t.Fatal(err)
	}
	return f
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func set(t *testing.T, value string, path ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(path...), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// disk waits for the disk and returns its node.
func (f foreign) disk(t *testing.T) string {
	t.Helper()
	address, err := os.ReadFile(filepath.Join(f.wwn, "tpgt_1/address"))
	if err != nil {
		t.Fatal(err)
	}
	dir := "/sys/class/scsi_device/" + strings.TrimSpace(string(address)) + ":0/device/block"
	for {
		if names, err := os.ReadDir(dir); err == nil && len(names) == 1 {
			node := "/dev/" + names[0].Name()
			if fd, err := unix.Open(node, unix.O_RDONLY, 0); err == nil {
				_ = unix.Close(fd)
				return node
			}
		}
		<-time.After(10 * time.Millisecond)
	}
}

func (f foreign) remove(t *testing.T) {
	t.Helper()
	if err := os.Remove(f.link); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(f.wwn, "tpgt_1")
	for _, dir := range []string{filepath.Join(group, "lun/lun_0"), group, f.wwn, f.dev} {
		if err := unix.Rmdir(dir); err != nil {
			t.Fatal(dir, err)
		}
	}
}
