// SPDX-License-Identifier: Apache-2.0

package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Tool returns a directory that holds programs of a module, of the version
// that tests/e2e/tools names. They are built once and cached under the name;
// args are the flags and packages of go build.
func Tool(t testing.TB, name, module string, args ...string) string {
	t.Helper()
	tools := filepath.Join(moduleRoot(t), "tests", "e2e", "tools")
	version := toolVersion(t, module)
	return Cached(t, name+"-"+version, func(dir string) {
		t.Logf("building %s %s: minutes, but only once", name, version)
		GoBuild(t, tools, dir, args...)
	})
}

func toolVersion(t testing.TB, module string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", module)
	cmd.Dir = filepath.Join(moduleRoot(t), "tests", "e2e", "tools")
	out, err := cmd.Output()
	if err != nil || len(out) < 2 {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return string(out[:len(out)-1])
}

// GoBuild builds static programs into dst, by go build in src with args.
func GoBuild(t testing.TB, src, dst string, args ...string) {
	t.Helper()
	argv := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dst + "/"}, args...)
	cmd := exec.CommandContext(t.Context(), "go", argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it removes its work directory then
	cmd.WaitDelay = time.Minute
	cmd.Dir, cmd.Env = src, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}
