// SPDX-License-Identifier: Apache-2.0

package need

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"
)

// QEMU skips the test unless REQUIRE lists qemu: without KVM, guests take
// minutes. They need QEMU and Debian's kernels, and neither root nor KVM.
func QEMU(t testing.TB) {
	t.Helper()
	if !required("qemu") {
		t.Skip("make test-vm runs it")
	}
	check(t, "qemu", runtime.GOARCH == "amd64", "guests are made for amd64 only")
	for _, name := range []string{"qemu-system-x86_64", "apt-get", "dpkg-deb", "xz"} {
		_, err := exec.LookPath(name)
		check(t, "qemu", err == nil, name+" is not installed")
	}
}

// Kernel returns a directory that holds boot/vmlinuz-* and lib/modules/* of
// the Debian package that the meta package depends on
// ("linux-image-cloud-amd64"). It is downloaded once, from the machine's own
// package sources, and not installed; delete it from the cache for a newer
// one.
func Kernel(t testing.TB, meta string) string {
	t.Helper()
	QEMU(t)
	return Cached(t, meta, func(dir string) {
		err := unpackKernel(t, dir, meta, nil)
		if err != nil {
			// The package lists are missing, or older than the mirror.
			err = unpackKernel(t, dir, meta, ownLists(t))
		}
		check(t, "qemu", err == nil, fmt.Sprintf("kernel %s: %v", meta, err))
	})
}

// ownLists returns the options that make apt keep its package lists in a
// directory of the test's, where it can update them without root.
func ownLists(t testing.TB) []string {
	t.Helper()
	dir := t.TempDir()
	opts := []string{"-o", "Dir::State=" + dir, "-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "Dir::Cache=" + dir}
	if _, err := output(t, dir, "apt-get", append(opts, "update")...); err != nil {
		t.Log(err)
	}
	return opts
}

var imagePackage = regexp.MustCompile(`Depends: (linux-image-[0-9]\S*)`)

func unpackKernel(t testing.TB, dir, meta string, opts []string) error {
	tmp := t.TempDir()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	out, err := output(t, tmp, "apt-cache", append(opts, "depends", meta)...)
	if err != nil {
		return err
	}
	image := imagePackage.FindStringSubmatch(out)
	if image == nil {
		return fmt.Errorf("the package depends on no kernel: %s", out)
	}
	if _, err := output(t, tmp, "apt-get", append(opts, "download", image[1])...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download left %d packages: %w", len(debs), err)
	}
	_, err = output(t, tmp, "dpkg-deb", "-x", debs[0], dir)
	return err
}

// output runs a program in dir and returns what it printed.
func output(t testing.TB, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return string(out), nil
}
