// SPDX-License-Identifier: Apache-2.0

// Package vm runs programs in a small virtual machine with a kernel of our
// choice, for tests of what the machine's own kernel lacks. It needs neither
// root nor KVM nor any module on the host.
//
// The guest is Debian's kernel, an initramfs that holds an init of our own and
// the modules asked for, and a disk with the programs; see [Guest].
package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/overlaybd-go/overlaybd/tests/vm/job"
)

// A Guest is a virtual machine that boots, runs its commands one after the
// other, and powers off.
type Guest struct {
	Kernel   string            // directory that holds boot/ and lib/modules/
	Init     string            // the program tests/vm/init, static
	Modules  []string          // to load, with those they depend on
	Programs []string          // of the host, to be found under the same path, with their libraries
	Files    map[string]string // files of the host by their path in the guest
	Space    int64             // bytes that its disk has free, or more
	Commands []job.Command
}

// memory of a guest, in MiB. A hundred TCMU disks take a gigabyte of it: SCSI
// requests are allocated beforehand.
const memory = 2560

// rootModules are what the guest reaches its disk with.
var rootModules = []string{"virtio_pci", "virtio_blk", "ext4"}

// Run boots the guest and copies what its commands print to out. It returns
// the exit code of the first command that failed, or 0. Dir is for the
// guest's files; the guest is killed when ctx is done.
func (g *Guest) Run(ctx context.Context, dir string, out io.Writer) (code int, err error) {
	if err := g.writeInitrd(ctx, filepath.Join(dir, "initrd")); err != nil {
		return 0, fmt.Errorf("make initramfs: %w", err)
	}
	if err := g.writeDisk(ctx, dir, filepath.Join(dir, "disk")); err != nil {
		return 0, fmt.Errorf("make disk: %w", err)
	}
	cmd, err := g.command(ctx, dir)
	if err != nil {
		return 0, err
	}
	// The guest goes when we do, however we do; the kernel means the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	code, found, err := copyOutput(out, stdout)
	if err := errors.Join(err, cmd.Wait(), ctx.Err()); err != nil || !found {
		return 0, errors.Join(fmt.Errorf("guest ended without a result: %s\nits console:\n%s", stderr.Bytes(), tail(filepath.Join(dir, "console"))), err)
	}
	return code, nil
}

// command returns the virtual machine with the files of dir.
func (g *Guest) command(ctx context.Context, dir string) (*exec.Cmd, error) {
	vmlinuz, err := one(filepath.Join(g.Kernel, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, "qemu-system-x86_64",
		// Two processors in one thread: emulated side by side, one now and then
		// runs what the other is just patching in the kernel, and panics.
		"-machine", "q35", "-accel", "tcg,thread=single", "-smp", "2", "-m", strconv.Itoa(memory),
		// Emulated cmpxchg16b crashes kernels now and then.
		"-cpu", "max,-cx16",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:"+filepath.Join(dir, "console"), "-serial", "stdio",
		// It is gone after the test: nothing need be written back.
		"-drive", "if=virtio,format=raw,cache=unsafe,file="+filepath.Join(dir, "disk"),
		"-kernel", vmlinuz, "-initrd", filepath.Join(dir, "initrd"),
		"-append", "console=ttyS0 panic=-1 loglevel=5 tsc=reliable no_timer_check mitigations=off nokaslr random.trust_cpu=on"), nil
}

// copyOutput copies lines up to the one that holds the exit code.
func copyOutput(w io.Writer, r io.Reader) (code int, found bool, err error) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if mark, ok := strings.CutPrefix(line, job.ExitMark); ok {
			code, err := strconv.Atoi(strings.TrimSpace(mark))
			return code, err == nil, err
		}
		if _, err := io.WriteString(w, line); err != nil {
			return 0, false, err
		}
		if errors.Is(err, io.EOF) {
			return 0, false, nil
		}
		if err != nil {
			return 0, false, err
		}
	}
}

// tail returns the end of what the kernel wrote to its console.
func tail(console string) []byte {
	const most = 8 << 10 // bytes
	b, err := os.ReadFile(console)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(b[max(0, len(b)-most):])
}

func (g *Guest) writeInitrd(ctx context.Context, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(g.fillInitrd(ctx, newArchive(w)), w.Flush(), f.Close())
}

func (g *Guest) fillInitrd(ctx context.Context, a *archive) error {
	tree, err := one(filepath.Join(g.Kernel, "lib", "modules", "*"))
	if err != nil {
		return err
	}
	available, err := openModules(tree)
	if err != nil {
		return err
	}
	modules, err := available.resolve(ctx, append(slices.Clone(rootModules), g.Modules...)...)
	if err != nil {
		return err
	}
	j := job.Job{Commands: g.Commands}
	for _, m := range modules {
		file := "/modules/" + m.name + ".ko"
		a.file(file, 0o644, m.data)
		j.Modules = append(j.Modules, file)
	}
	spec, err := json.Marshal(j)
	if err != nil {
		return err
	}
	a.dir("dev")
	a.dir("root")
	a.file("job.json", 0o644, spec)
	a.host("init", g.Init)
	return a.close()
}

// one returns the only file that matches pattern.
func one(pattern string) (string, error) {
	files, err := filepath.Glob(pattern)
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("%s matches %d files, want one", pattern, len(files))
	}
	if err != nil {
		return "", err
	}
	return files[0], nil
}
