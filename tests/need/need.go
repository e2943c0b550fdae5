// SPDX-License-Identifier: Apache-2.0

// Package need gates tests on what the machine offers. A test that calls
// need.FUSE(t) is skipped where FUSE is missing, and fails there when the
// environment variable REQUIRE lists it (REQUIRE=fuse,loop,golden), so that CI
// cannot pass by skipping.
package need

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	check(t, "root", os.Geteuid() == 0, "run this as root")
}

// FUSE skips the test unless the process may mount FUSE file systems.
func FUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
	}
	check(t, "fuse", err == nil && os.Geteuid() == 0, "/dev/fuse cannot be opened by root")
}

// Loop skips the test unless the process may set up loop devices.
func Loop(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
	}
	check(t, "loop", err == nil && os.Geteuid() == 0, "/dev/loop-control cannot be opened by root")
}

// EROFS skips the test unless the kernel mounts EROFS from a file and lets one
// choose whether past that one's page cache, as Linux does since 6.13.
func EROFS(t testing.TB) {
	t.Helper()
	Root(t)
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err == nil {
		err = unix.FsconfigSetFlag(fs, "directio")
		_ = unix.Close(fs)
	}
	check(t, "erofs", err == nil, fmt.Sprintf("the kernel has no EROFS with the option directio: %v", err))
}

// Time skips the test if tests are to be short, and says why it is not.
func Time(t testing.TB, why string) {
	t.Helper()
	check(t, "time", !testing.Short(), why)
}

// Command skips the test unless the program name is on PATH or in the system's
// sbin folders, and returns its path. REQUIRE lists it by its name, or all of
// them as "commands".
func Command(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err != nil && required("commands") {
		t.Fatalf("%s is required: it is not installed; make setup installs it", name)
	}
	check(t, name, err == nil, name+" is not installed; make setup installs it")
	return path
}

// Capability skips the test if err, which says what the capability name lacks,
// is not nil.
func Capability(t testing.TB, name string, err error) {
	t.Helper()
	check(t, name, err == nil, fmt.Sprint(err))
}

// check skips t when the capability name is absent, or fails it when REQUIRE
// lists the name, or "all".
func check(t testing.TB, name string, ok bool, why string) {
	t.Helper()
	if ok {
		return
	}
	if required(name) {
		t.Fatalf("%s is required: %s", name, why)
	}
	t.Skipf("needs %s: %s", name, why)
}

// required reports whether REQUIRE lists the capability name.
func required(name string) bool {
	list := strings.Split(os.Getenv("REQUIRE"), ",")
	return slices.Contains(list, name) || slices.Contains(list, "all")
}
