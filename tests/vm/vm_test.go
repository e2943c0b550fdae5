// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/need"
	"github.com/overlaybd-go/overlaybd/tests/vm/job"
)

// timeLimit is what a guest gets before it is killed. It takes seconds to
// boot and a few minutes for its tests where the host has little else to do.
const timeLimit = 25 * time.Minute

// The packages of Debian stable's own kernel, and of the newest one made for
// it.
const (
	linux61  = "linux-image-cloud-amd64"
	linux612 = "linux-image-6.12-cloud-amd64"
)

// TestCopyOutput takes what a guest may send, whole or cut short.
func TestCopyOutput(t *testing.T) {
	for _, c := range []struct {
		in, out string
		code    int
		found   bool
	}{
		{"", "", 0, false},
		{"hello\n", "hello\n", 0, false},
		{"hello\nguest-exit: 0\n", "hello\n", 0, true},
		{"hello\nguest-exit: 17\nmore", "hello\n", 17, true},
		{"says guest-exit: 1\ncut", "says guest-exit: 1\ncut", 0, false},
		{"guest-exit: x\n", "", 0, false},
	} {
		var out strings.Builder
		code, found, err := copyOutput(&out, strings.NewReader(c.in))
		if out.String() != c.out || code != c.code || found != c.found {
			t.Errorf("%q: %q, %d, %v, %v, want %q, %d, %v", c.in, out.String(), code, found, err, c.out, c.code, c.found)
		}
	}
}

// TestExitCode asks that the code of the first command that fails comes out,
// with what the commands print.
func TestExitCode(t *testing.T) {
	var out bytes.Buffer
	code := run(t, &out, &Guest{
		Kernel:   need.Kernel(t, linux61),
		Programs: []string{"/bin/sh"},
		Commands: []job.Command{
			{Args: []string{"/bin/sh", "-c", "echo $WHAT"}, Env: []string{"WHAT=hello"}},
			{Args: []string{"/bin/sh", "-c", "exit 3"}},
			{Args: []string{"/bin/sh", "-c", "echo after; exit 4"}},
		},
	})
	if code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	if want := "hello\nafter\n"; out.String() != want {
		t.Errorf("output %q, want %q", out.String(), want)
	}
}

// The guests run the tests of packages that need what the kernel of the host
// may lack.
var guests = []struct {
	kernel   string
	packages []string
	modules  []string
	require  string // what the tests find there, beside programs
}{
	{
		linux61,
		[]string{"backend/fuse", "backend/tcmu", "tests/device", "cmd/overlaybd-blockd"},
		[]string{"configfs", "target_core_user", "tcm_loop", "sd_mod", "fuse", "loop", "xfs"},
		"root,fuse,loop,tcmu",
	},
	{
		linux612,
		[]string{"backend/fuse", "backend/tcmu", "backend/ublk", "tests/device", "cmd/overlaybd-blockd"},
		[]string{"configfs", "target_core_user", "tcm_loop", "sd_mod", "ublk_drv", "fuse", "loop", "xfs"},
		"root,fuse,loop,tcmu,ublk",
	},
}

// programs are what the tests in the guests use.
var programs = []string{
	"sh", "mkdir", "ln", "rm", "rmdir",
	"losetup", "blockdev", "blkdiscard", "blkzone", "lsblk", "fio",
	"mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair",
	"sg_inq", "sg_luns", "sg_modes", "sg_raw", "sg_readcap", "sg_requests", "sg_sync", "sg_turs", "sg_vpd",
}

// TestGuests runs the tests that their host cannot.
func TestGuests(t *testing.T) {
	dependOnSources(t)
	for _, g := range guests {
		t.Run(g.kernel, func(t *testing.T) {
			t.Parallel()
			guest := &Guest{Kernel: need.Kernel(t, g.kernel), Modules: g.modules, Files: make(map[string]string), Space: 64 << 20}
			env := []string{"REQUIRE=" + strings.Join(append(slices.Clone(programs), g.require), ","), "SEED=" + os.Getenv("SEED")}
			for _, name := range programs {
				guest.Programs = append(guest.Programs, need.Command(t, name))
			}
			for _, pkg := range g.packages {
				name := "/tests/" + filepath.Base(pkg)
				guest.Files[name] = goBuild(t, t.TempDir(), "test", pkg)
				guest.Commands = append(guest.Commands, job.Command{Args: append([]string{name}, flags(pkg)...), Env: env})
			}
			if code := run(t, t.Output(), guest); code != 0 {
				t.Errorf("the tests in the guest ended with %d", code)
			}
		})
	}
}

// flags returns the flags for the tests of a package. VMFLAGS adds to them:
// VMFLAGS="-test.run=Many". KILLS is how often an exporter's tests kill the
// process that serves a device.
func flags(pkg string) []string {
	all := append([]string{"-test.v", "-test.timeout=20m"}, strings.Fields(os.Getenv("VMFLAGS"))...)
	if n := os.Getenv("KILLS"); n != "" && (pkg == "backend/tcmu" || pkg == "backend/ublk") {
		all = append(all, "-kills="+n)
	}
	return all
}

func run(t *testing.T, out io.Writer, g *Guest) (code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeLimit)
	defer cancel()
	dir := t.TempDir()
	g.Init = goBuild(t, dir, "build", "tests/vm/init")
	code, err := g.Run(ctx, dir, out)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// dependOnSources lists the directories of the project, so that the go command
// knows a cached result of this test for an old one when a source has changed:
// what guests run is built without its knowledge.
func dependOnSources(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (d.Name() == "bin" || len(d.Name()) > 2 && d.Name()[0] == '.') {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// goBuild makes a static program of a package of the project: by "build" the
// command, by "test" its tests.
func goBuild(t *testing.T, dir, what, pkg string) string {
	t.Helper()
	name := filepath.Join(dir, what+"-"+filepath.Base(pkg))
	args := map[string][]string{"build": {"build"}, "test": {"test", "-c"}}[what]
	cmd := exec.CommandContext(t.Context(), "go", append(args, "-ldflags", "-s -w", "-o", name, "./"+pkg)...)
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return name
}
