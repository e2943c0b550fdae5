// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// samplesVersion is part of the cached images' names: change it with their
// layers.
const samplesVersion = "1"

// Platform is what images are built for unless a test says otherwise.
var Platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}

// Synthetic returns a small image with everything that is odd about layers;
// its one program is probe.
func Synthetic(t testing.TB) Image { return SyntheticFor(t, Platform) }

// SyntheticFor returns the small image labelled for another platform; its
// program is still this machine's.
func SyntheticFor(t testing.TB, p ocispec.Platform) Image {
	t.Helper()
	base := directory(probeDir(t), func(string) bool { return false })
	img, err := Build(t.TempDir(), p, []string{"/probe", "hello"}, base, tree, odd, nothing, removed, nothing, readded)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Debian returns Debian's minimal system with Python, made by debootstrap in
// the first run, below the same odd layers.
func Debian(t testing.TB) Image {
	t.Helper()
	layout := need.Cached(t, "debian-"+Platform.Architecture+"-"+samplesVersion, func(layout string) {
		t.Log("installing Debian: minutes, but only once")
		root := filepath.Join(tempDir(t), "root")
		t.Cleanup(func() { _ = unmountBelow(root) }) // what debootstrap mounts, should it be interrupted
		run(t, "", need.Command(t, "debootstrap"), "--variant=minbase", "--include=python3-minimal", "bookworm", root)
		hello := entries(dir("app", 0o755), file("app/hello.py", 0o755, []byte(helloPy)))
		command := []string{"python3", "/app/hello.py"}
		docs := entries(whiteout("usr/share/doc"), opaque("usr/share/locale"), opaque("usr/share/man"))
		_, err := Build(layout, Platform, command, directory(root, volatile), docs, tree, odd, nothing, removed, nothing, readded, hello)
		if err != nil {
			t.Fatal(err)
		}
	})
	img, err := Open(layout)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Packages returns the tars of Python, Node.js and PostgreSQL with all that they
// need, one for every Debian package, as its maintainers have archived it. They
// are downloaded in the first run, and not installed.
func Packages(t testing.TB) (tars []string) {
	t.Helper()
	dir := need.Cached(t, "debian-packages-"+Platform.Architecture+"-"+samplesVersion, func(dir string) {
		t.Log("downloading Debian packages: a minute, but only once")
		root := filepath.Join(tempDir(t), "root")
		run(t, "", need.Command(t, "debootstrap"), "--variant=minbase", "--download-only",
			"--include=python3,nodejs,postgresql", "bookworm", root)
		for _, name := range glob(t, root, "var/cache/apt/archives/*.deb") {
			unwrap(t, name, filepath.Join(dir, strings.TrimSuffix(filepath.Base(name), "deb")+"tar"))
		}
	})
	return glob(t, dir, "*.tar")
}

// glob returns the files that pattern matches below dir, one at least.
func glob(t testing.TB, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("no %s in %s: %v", pattern, dir, err)
	}
	return found
}

// unwrap writes the tar of a Debian package.
func unwrap(t testing.TB, deb, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stderr strings.Builder
	cmd := exec.CommandContext(t.Context(), need.Command(t, "dpkg-deb"), "--fsys-tarfile", deb)
	cmd.Stdout, cmd.Stderr = f, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, &stderr)
	}
}

const helloPy = `import sys, os
print("hello from", os.uname().sysname, sys.version_info[0])
`

// volatile reports what an installation has made that no image wants.
func volatile(name string) bool {
	for _, dir := range []string{"dev/", "proc/", "sys/", "run/", "var/cache/apt/", "var/lib/apt/lists/", "var/log/"} {
		if strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}
