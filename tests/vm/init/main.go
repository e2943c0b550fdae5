// SPDX-License-Identifier: Apache-2.0

// Command init is process 1 of the test guest: it loads the modules that
// /job.json names, moves to the disk, mounts what programs expect, runs the
// job's commands, and reports on the second serial port, where the kernel
// writes nothing.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/tests/vm/job"
)

func main() {
	if port, err := openPort(); err == nil {
		code, err := run(port)
		report(port, code, err)
	} else {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// report tells the host how it went; the port closes when all is sent.
func report(port *os.File, code int, err error) {
	if err != nil {
		code = 1
		_, _ = fmt.Fprintln(port, "init:", err)
	}
	_, _ = fmt.Fprintf(port, "%s%d\n", job.ExitMark, code)
	_ = unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1) // tcdrain
}

// openPort opens the serial port that leads to the host, without the
// translation of line ends.
func openPort() (*os.File, error) {
	if err := mount("devtmpfs", "/dev"); err != nil {
		return nil, err
	}
	f, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	tio, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	tio.Oflag &^= unix.OPOST
	tio.Lflag &^= unix.ECHO | unix.ICANON
	return f, unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, tio)
}

// run does the job and returns the exit code of the first command that failed.
func run(out io.Writer) (code int, err error) {
	b, err := os.ReadFile("/job.json")
	if err != nil {
		return 1, err
	}
	var j job.Job
	if err := json.Unmarshal(b, &j); err != nil {
		return 1, err
	}
	if err := prepare(j); err != nil {
		return 1, err
	}
	for _, c := range j.Commands {
		n, err := execute(c, out)
		if err != nil {
			return 1, err
		}
		if code == 0 {
			code = n
		}
	}
	return code, nil
}

// prepare makes the machine what a program takes for one.
func prepare(j job.Job) error {
	for _, name := range j.Modules {
		if err := load(name); err != nil {
			return err
		}
	}
	if err := enterDisk(); err != nil {
		return err
	}
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"cgroup2", "/sys/fs/cgroup"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
	} {
		if err := mount(m.kind, m.dir); err != nil {
			return err
		}
	}
	const configfs = "/sys/kernel/config" // there if a module of the job brings it
	if _, err := os.Stat(configfs); err == nil {
		if err := mount("configfs", configfs); err != nil {
			return err
		}
	}
	return raiseLoopback()
}

// enterDisk makes the disk the root file system. The initramfs stays below it,
// where nobody sees it.
func enterDisk() error {
	const disk, root = "/dev/vda", "/root"
	if err := unix.Mount(disk, root, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", disk, err)
	}
	if err := unix.Mount("/dev", root+"/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /dev: %w", err)
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// raiseLoopback brings the network up that leads nowhere else.
func raiseLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // nothing to lose
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}

func mount(kind, dir string) error {
	if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, dir, err)
	}
	return nil
}

// load puts a module into the kernel; those it depends on are there.
func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	return nil
}

func execute(c job.Command, out io.Writer) (code int, err error) {
	cmd := exec.Command(c.Args[0], c.Args[1:]...) //nolint:noctx // the host ends the guest when its time is over
	cmd.Dir, cmd.Env = "/tmp", append(c.Env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp")
	cmd.Stdout, cmd.Stderr = out, out
	defer time.AfterFunc(slow, func() { tellBlocked(out) }).Stop()
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	case errors.As(err, &exit):
		return 1, fmt.Errorf("%s: %w", c.Args[0], err)
	}
	return 0, err
}
