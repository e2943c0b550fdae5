// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// runtimes are the packages of each layer of [Runtimes] above the base system.
var runtimes = [][]string{
	{"python3*", "libpython3*"},
	{"python3-numpy", "libblas3*", "liblapack3*", "libgfortran5*", "libquadmath0*"},
	{"nodejs", "libnode*", "node-*", "libicu*"},
	{"redis-*"},
}

// Runtimes returns Debian with Python, NumPy, Node.js and Redis, each in a
// layer of its own as a Dockerfile would have it, made by debootstrap in the
// first run.
func Runtimes(t testing.TB) Image {
	t.Helper()
	layout := need.Cached(t, "runtimes-"+Platform.Architecture+"-"+samplesVersion, func(layout string) {
		t.Log("installing Debian with Python, Node.js and Redis: minutes, but only once")
		root := filepath.Join(tempDir(t), "root")
		t.Cleanup(func() { _ = unmountBelow(root) }) // what debootstrap mounts, should it be interrupted
		run(t, "", need.Command(t, "debootstrap"), "--variant=minbase",
			"--include=python3,python3-numpy,nodejs,redis-server", "bookworm", root)
		if _, err := Build(layout, Platform, []string{"/bin/true"}, byPackage(t, root, runtimes)...); err != nil {
			t.Fatal(err)
		}
	})
	img, err := Open(layout)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// byPackage returns the layers of the system below root: one for each group of
// packages, above one for all else. What two groups name is in the last.
func byPackage(t testing.TB, root string, groups [][]string) []Layer {
	t.Helper()
	layer := make(map[string]int) // of files, by name
	dirs := make([]map[string]bool, len(groups)+1)
	for i, g := range groups {
		dirs[i+1] = make(map[string]bool)
		for _, name := range listed(t, root, g) {
			info, err := os.Lstat(filepath.Join(root, name))
			switch {
			case err != nil: // not there: another package has diverted it
			case info.IsDir():
				dirs[i+1][name] = true
			default:
				layer[name] = i + 1
			}
		}
	}
	layers := []Layer{directory(root, func(name string) bool { return layer[name] != 0 || volatile(name) })}
	for i := 1; i <= len(groups); i++ {
		layers = append(layers, directory(root, func(name string) bool { return layer[name] != i && !dirs[i][name] }))
	}
	return layers
}

// listed returns the names that the packages below root have installed.
func listed(t testing.TB, root string, packages []string) (names []string) {
	t.Helper()
	for _, p := range packages {
		for _, list := range glob(t, root, "var/lib/dpkg/info/"+p+".list") {
			text, err := os.ReadFile(list)
			if err != nil {
				t.Fatal(err)
			}
			for name := range strings.Lines(string(text)) {
				names = append(names, strings.Trim(name, "/\n"))
			}
		}
	}
	return names
}
