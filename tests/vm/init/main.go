// SPDX-License-Identifier: Apache-2.0

// Command init is process 1 of the test guest: it mounts what programs expect,
// loads the modules and runs the commands that /job.json names, and reports on
// the second serial port, where the kernel writes nothing.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

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

func prepare(j job.Job) error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
	} {
		if err := mount(m.kind, m.dir); err != nil {
			return err
		}
	}
	for _, name := range j.Modules {
		if err := load(name); err != nil {
			return err
		}
	}
	const configfs = "/sys/kernel/config" // there if a module of the job brings it
	if _, err := os.Stat(configfs); err == nil {
		return mount("configfs", configfs)
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
