// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"fmt"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// verified is the size of the disks that fio verifies, in bytes.
const verified = 4 << 20

// TestVerify has fio write blocks of random sizes at random places, each with
// checksums, and verify them: on the device that took them, and on one that
// cannot be written to.
func TestVerify(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		need.Command(t, "fio")
		e, v := k.exporter(t), newVolume(verified)
		d := export(t, e, "rw", v)
		verify(t, d.Path(), 1, 1, "--rw=randrw")
		verify(t, d.Path(), 8, 1, "--rw=randwrite")
		verify(t, d.Path(), 32, 2, "--rw=randrw")
		verify(t, d.Path(), 32, 2, "--rw=randwrite")
		remove(t, d)
		ro := export(t, e, "ro", backendtest.ReadOnly(v))
		verify(t, ro.Path(), 1, 1, "--rw=randread", "--readonly")
		verify(t, ro.Path(), 32, 2, "--rw=randread", "--readonly")
	})
}

// verify runs fio's verified I/O over all of disk, by jobs that have a part of
// it each.
func verify(t *testing.T, disk string, depth, jobs int, args ...string) {
	t.Helper()
	size := verified / jobs
	run(t, "fio", append([]string{
		"--name=verify", "--filename=" + disk, "--direct=1", "--ioengine=libaio", "--thread",
		fmt.Sprintf("--iodepth=%d", depth), fmt.Sprintf("--numjobs=%d", jobs),
		fmt.Sprintf("--size=%d", size), fmt.Sprintf("--offset_increment=%d", size),
		"--bsrange=512-128k", "--verify=crc32c", "--verify_interval=512", "--verify_fatal=1",
		"--verify_state_save=0", "--allrandrepeat=0", "--group_reporting",
	}, args...)...)
}
