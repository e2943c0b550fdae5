// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"path/filepath"
	"testing"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
	"github.com/overlaybd-go/overlaybd/tests/vm/job"
)

// containerTests are those of tests/e2e that run in a guest. What they run
// there is slow.
const containerTests = "^(TestConvertAndRun|TestBlockdKilled)$/^(\\[\\]|convert)$"

// TestContainers converts an image and runs containers of it in a guest, over
// the exporters that its kernel has and the host's may lack.
func TestContainers(t *testing.T) {
	t.Parallel()
	dependOnSources(t)
	guest := &Guest{
		Kernel:  need.Kernel(t, linux612),
		Modules: []string{"configfs", "target_core_user", "tcm_loop", "sd_mod", "ublk_drv", "fuse", "loop", "overlay"},
		Files:   map[string]string{"/tests/e2e": goBuild(t, t.TempDir(), "test", "tests/e2e")},
		Space:   2 << 30,
	}
	for _, name := range []string{"sh", "runc", "docker-registry", "mkfs.ext4"} {
		guest.Programs = append(guest.Programs, need.Command(t, name))
	}
	for _, program := range e2e.Prebuild(t) {
		guest.Files["/prebuilt/"+filepath.Base(program)] = program
	}
	for _, exporter := range []string{"tcmu", "ublk"} {
		guest.Commands = append(guest.Commands, job.Command{
			Args: append([]string{"/tests/e2e", "-test.run=" + containerTests}, flags("tests/e2e")...),
			Env: []string{
				"REQUIRE=all", "E2E_PREBUILT=/prebuilt", "E2E_EXPORTER=" + exporter,
				"TMPDIR=/var", // on the disk: memory is no place for what is written past the page cache
			},
		})
	}
	if code := run(t, t.Output(), guest); code != 0 {
		t.Errorf("the tests in the guest ended with %d", code)
	}
}
