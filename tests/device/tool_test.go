// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
)

// TestTools asks tools of the distribution what they make of a device.
func TestTools(t *testing.T) {
	const size = 8<<20 + 4096
	each(t, func(t *testing.T, k kind) {
		e := k.exporter(t)
		v := newVolume(size)
		for name, v := range map[string]backend.Volume{"rw": v, "ro": backendtest.ReadOnly(v)} {
			d := export(t, e, name, v)
			readOnly := map[string]string{"rw": "0", "ro": "1"}[name]
			want := strings.Join([]string{readOnly, "512", fmt.Sprint(size)}, "\n")
			if got := strings.TrimSpace(run(t, "blockdev", "--getro", "--getss", "--getsize64", d.Path())); got != want {
				t.Errorf("blockdev says of %s\n%s\nwant\n%s", name, got, want)
			}
			want = fmt.Sprintf("%d %s none", size, readOnly)
			got := run(t, "lsblk", "--bytes", "--noheadings", "--nodeps", "--output", "SIZE,RO,ZONED", d.Path())
			if got := strings.Join(strings.Fields(got), " "); got != want {
				t.Errorf("lsblk says of %s %q, want %q", name, got, want)
			}
			if out, err := tool("blkzone", "report", d.Path()); err == nil {
				t.Errorf("blkzone reports zones of %s: %s", name, out)
			}
		}
	})
}

// TestDiscard asks that what is discarded or zeroed reads as zeroes, from the
// device and from the volume, and what lies beside it does not.
func TestDiscard(t *testing.T) {
	const size, off, length = 1 << 20, 256<<10 + 512, 128 << 10
	each(t, func(t *testing.T, k kind) {
		for name, flags := range map[string][]string{"discard": nil, "zeroout": {"--zeroout"}} {
			v := newVolume(size)
			want := bytes.Repeat([]byte{7}, size)
			if _, err := v.WriteAt(t.Context(), want, 0); err != nil {
				t.Fatal(err)
			}
			d := export(t, k.exporter(t), name, v)
			// It looks for a file system first, and asks if there is one.
			args := append(flags, "--force", "--offset", fmt.Sprint(off), "--length", fmt.Sprint(length), d.Path())
			run(t, "blkdiscard", args...)
			clear(want[off:][:length])
			if got, err := readAt(d.Path(), 0, size); err != nil || !bytes.Equal(got, want) {
				t.Errorf("after %s of a part the device has other bytes: %v", name, err)
			}
			got := make([]byte, size)
			if _, err := v.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("after %s of a part the volume has other bytes: %v", name, err)
			}
		}
	})
}

// TestSCSI asks the SCSI tools what they make of a disk.
func TestSCSI(t *testing.T) {
	const size = 8 << 20
	each(t, func(t *testing.T, k kind) {
		e := k.exporter(t)
		v := newVolume(size)
		marks := bytes.Repeat([]byte("overlay!"), 64)
		if _, err := v.WriteAt(t.Context(), marks, 4096); err != nil {
			t.Fatal(err)
		}
		for name, v := range map[string]backend.Volume{"rw": v, "ro": backendtest.ReadOnly(v)} {
			disk := export(t, e, name, v).Path()
			askSCSI(t, disk, name == "rw")
			refuseSCSI(t, disk)
			file := filepath.Join(t.TempDir(), "block")
			run(t, "sg_raw", "--readonly", "--request=512", "--outfile="+file, disk, "28", "00", "00", "00", "00", "08", "00", "00", "01", "00")
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, marks) {
				t.Errorf("READ(10) returns other bytes: %v", err)
			}
		}
	}, "tcmu")
}

// askSCSI looks for words in what tools say. Some tools open a disk for
// writing, though they only ask.
func askSCSI(t *testing.T, disk string, writable bool) {
	t.Helper()
	for _, c := range []struct {
		args   []string
		writes bool
		says   string
	}{
		{[]string{"sg_turs", disk}, false, ""},
		{[]string{"sg_inq", disk}, false, "Product identification: TCMU device"},
		{[]string{"sg_readcap", "--readonly", disk}, false, "Number of logical blocks=16384"},
		{[]string{"sg_readcap", "--16", "--readonly", disk}, false, "Number of logical blocks=16384"},
		{[]string{"sg_luns", disk}, true, "0000000000000000"},
		{[]string{"sg_modes", "--all", disk}, true, "Caching"},
		{[]string{"sg_requests", disk}, true, ""},
		{[]string{"sg_vpd", "--page=sv", disk}, false, "Supported VPD pages"},
		{[]string{"sg_vpd", "--page=sn", disk}, false, "Unit serial number"},
		{[]string{"sg_vpd", "--page=di", disk}, false, "0x6001405"},
		{[]string{"sg_vpd", "--page=bl", disk}, false, "Maximum transfer length: 2048 blocks"},
		{[]string{"sg_vpd", "--page=bdc", disk}, false, "Non-rotating medium"},
		{[]string{"sg_vpd", "--page=lbpv", disk}, false, "Logical block provisioning"},
		{[]string{"sg_sync", disk}, true, ""},
	} {
		if c.writes && !writable {
			continue
		}
		if out := run(t, c.args[0], c.args[1:]...); !strings.Contains(out, c.says) {
			t.Errorf("%v: no %q in\n%s", c.args, c.says, out)
		}
	}
}

// refuseSCSI asks for what the disk does not have; it must say so, and go on.
func refuseSCSI(t *testing.T, disk string) {
	t.Helper()
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"sg_raw", "--readonly", disk, "a3", "0c", "00", "00", "00", "00", "00", "00", "00", "00", "00", "00"}, "Invalid command operation code"},
		{[]string{"sg_raw", "--readonly", "--request=512", disk, "28", "00", "00", "00", "40", "00", "00", "00", "01", "00"}, "Logical block address out of range"},
		{[]string{"sg_raw", "--readonly", "--request=64", disk, "12", "01", "b6", "00", "40", "00"}, "Invalid field in cdb"},
	} {
		if out, err := tool(c.args[0], c.args[1:]...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q\n%s", c.args, err, c.says, out)
		}
	}
	run(t, "sg_turs", disk)
}
