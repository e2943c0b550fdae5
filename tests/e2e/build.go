// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// These tags leave out the parts of containerd that no test uses, and CRI where
// a test does not; they are half of its build time.
const (
	criTags        = "no_btrfs,no_devmapper,no_zfs,no_aufs,no_tracing"
	containerdTags = "no_cri," + criTags
)

// prebuiltVar names a directory that [Prebuild] has filled, for machines that
// have no Go.
const prebuiltVar = "E2E_PREBUILT"

// Prebuild builds all programs that a test otherwise builds when it wants
// them, and returns their paths.
func Prebuild(t testing.TB) (programs []string) {
	t.Helper()
	dir := t.TempDir()
	need.GoBuild(t, moduleRoot(t), dir, "./tests/e2e/probe", "./cmd/...")
	tools := containerdDir(t, false)
	programs = []string{filepath.Join(tools, "containerd"), filepath.Join(tools, "containerd-shim-runc-v2")}
	built, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(programs, built...)
}

// containerdDir returns a directory that holds containerd and its runc shim:
// the installed ones if they are of version 2, else the ones that the tools
// module names. With CRI they are always those: it changes with each version.
func containerdDir(t testing.TB, cri bool) string {
	t.Helper()
	build := func(name, tags string) string {
		const module = "github.com/containerd/containerd/v2"
		return need.Tool(t, name, module, "-tags", tags, module+"/cmd/containerd", module+"/cmd/containerd-shim-runc-v2")
	}
	if cri {
		return build("containerd-cri", criTags)
	}
	if dir := os.Getenv(prebuiltVar); dir != "" {
		return dir
	}
	if dir, ok := installedContainerd(t.Context()); ok {
		return dir
	}
	return build("containerd", containerdTags)
}

var versionNumber = regexp.MustCompile(` v?(\d+)\.\d+`)

func installedContainerd(ctx context.Context) (dir string, ok bool) {
	daemon, err := exec.LookPath("containerd")
	if err != nil {
		return "", false
	}
	out, err := exec.CommandContext(ctx, daemon, "--version").Output()
	m := versionNumber.FindSubmatch(out)
	if err != nil || m == nil {
		return "", false
	}
	major, err := strconv.Atoi(string(m[1]))
	dir = filepath.Dir(daemon)
	_, noShim := os.Stat(filepath.Join(dir, "containerd-shim-runc-v2"))
	return dir, err == nil && noShim == nil && major >= 2
}

var buildOnce = sync.OnceValue(func() error {
	root, err := findModule()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-o", "bin/", "./cmd/...")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
})

// Bin builds every command of the project and returns the directory that
// holds them.
func Bin(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(prebuiltVar); dir != "" {
		return dir
	}
	if err := buildOnce(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(moduleRoot(t), "bin")
}

// probeDir returns a directory that holds the program probe and nothing else.
func probeDir(t testing.TB) string {
	t.Helper()
	bin := t.TempDir()
	dir := os.Getenv(prebuiltVar)
	if dir == "" {
		need.GoBuild(t, moduleRoot(t), bin, "./tests/e2e/probe")
		return bin
	}
	program, err := os.ReadFile(filepath.Join(dir, "probe"))
	if err == nil {
		err = os.WriteFile(filepath.Join(bin, "probe"), program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := findModule()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// findModule returns the directory at or above the current one that holds the
// project's go.mod.
func findModule() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.Contains(string(mod), "module github.com/overlaybd-go/overlaybd\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("run this below the project's go.mod")
		}
	}
}
