// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A system is Debian in a directory that grows as by a Dockerfile: what a step
// changes is a layer.
type system struct {
	t     testing.TB
	root  string
	steps []time.Time // when each began, after that which made the system
}

// newSystem installs Debian's minimal system.
func newSystem(t testing.TB) *system {
	t.Helper()
	s := &system{t: t, root: filepath.Join(tempDir(t), "root")}
	t.Cleanup(func() { _ = unmountBelow(s.root) }) // what debootstrap mounts, should it be interrupted
	run(t, "", need.Command(t, "debootstrap"), "--variant=minbase", "bookworm", s.root)
	s.write("usr/sbin/policy-rc.d", 0o755, []byte("#!/bin/sh\nexit 101\n")) // start no service
	s.chroot("apt-get", "update")
	return s
}

// install is a step that installs packages, and what they depend on.
func (s *system) install(packages ...string) {
	s.t.Helper()
	s.steps = append(s.steps, time.Now())
	proc := filepath.Join(s.root, "proc") // Java's package wants it
	if err := unix.Mount("proc", proc, "proc", 0, ""); err != nil {
		s.t.Fatal(err)
	}
	defer unix.Unmount(proc, unmountDetach) //nolint:errcheck // the end of the test would tell
	s.chroot(append([]string{
		"env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C",
		"apt-get", "install", "--yes", "--no-install-recommends", "--option", "Dpkg::Options::=--force-unsafe-io",
	}, packages...)...)
}

func (s *system) chroot(command ...string) {
	s.t.Helper()
	run(s.t, "", append([]string{"chroot", s.root}, command...)...)
}

// write adds a file to the step under way.
func (s *system) write(name string, mode os.FileMode, content []byte) {
	s.t.Helper()
	name = filepath.Join(s.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(name, content, mode); err != nil {
		s.t.Fatal(err)
	}
}

// layers returns one layer for the minimal system, and one for each step. What
// several have changed is in the last of them.
func (s *system) layers() []Layer {
	s.t.Helper()
	in := make([]map[string]bool, len(s.steps)+1)
	for i := range in {
		in[i] = make(map[string]bool)
	}
	err := filepath.WalkDir(s.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n, err := s.changed(d)
		rel := strings.TrimPrefix(strings.TrimPrefix(name, s.root), "/")
		for ; rel != "" && rel != "."; rel = path.Dir(rel) { // with the directories that it is in
			in[n][rel] = true
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	layers := make([]Layer, len(in))
	for i, names := range in {
		layers[i] = directory(s.root, func(name string) bool { return !names[name] || volatile(name) })
	}
	return layers
}

// changed returns after how many steps a file was last changed, which the
// kernel notes in ctime.
func (s *system) changed(d fs.DirEntry) (n int, err error) {
	info, err := d.Info()
	if err != nil {
		return 0, err
	}
	st := info.Sys().(*syscall.Stat_t) //nolint:errcheck // the directory's entries are of Linux
	at := time.Unix(st.Ctim.Unix())
	for n < len(s.steps) && !at.Before(s.steps[n]) {
		n++
	}
	return n, nil
}
