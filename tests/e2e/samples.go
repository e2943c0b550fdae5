// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
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
	bin := t.TempDir()
	need.GoBuild(t, moduleRoot(t), bin, "./tests/e2e/probe")
	base := directory(bin, func(string) bool { return false })
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
	return mustOpen(t, layout)
}

// Packages returns Python, Node.js and PostgreSQL with all that they need, as
// Debian packs them: every package is a layer, as its maintainers have written
// it. They are downloaded in the first run, and not installed.
func Packages(t testing.TB) Image {
	t.Helper()
	layout := need.Cached(t, "packages-"+Platform.Architecture+"-"+samplesVersion, func(layout string) {
		t.Log("downloading Debian packages: a minute, but only once")
		root := filepath.Join(tempDir(t), "root")
		run(t, "", need.Command(t, "debootstrap"), "--variant=minbase", "--download-only", "--include=python3,nodejs,postgresql", "bookworm", root)
		debs, err := filepath.Glob(filepath.Join(root, "var/cache/apt/archives/*.deb"))
		if err != nil || len(debs) == 0 {
			t.Fatalf("debootstrap has downloaded nothing: %v", err)
		}
		layers := make([]Layer, len(debs))
		for i, name := range debs {
			layers[i] = debian(t.Context(), need.Command(t, "dpkg-deb"), name)
		}
		if _, err := Build(layout, Platform, []string{"node", "--version"}, layers...); err != nil {
			t.Fatal(err)
		}
	})
	return mustOpen(t, layout)
}

// debian returns the layer of the files of a Debian package.
func debian(ctx context.Context, dpkg, name string) Layer {
	return func(w *tar.Writer) (err error) {
		cmd := exec.CommandContext(ctx, dpkg, "--fsys-tarfile", name)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		err = copyTar(w, out)
		if _, rest := io.Copy(io.Discard, out); rest != nil {
			err = errors.Join(err, rest)
		}
		if err = errors.Join(err, cmd.Wait()); err != nil {
			return fmt.Errorf("package %s: %w", filepath.Base(name), err)
		}
		return nil
	}
}

// copyTar copies the entries of a tar, in the format that they have.
func copyTar(w *tar.Writer, from io.Reader) error {
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
}

func mustOpen(t testing.TB, layout string) Image {
	t.Helper()
	img, err := Open(layout)
	if err != nil {
		t.Fatal(err)
	}
	return img
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
