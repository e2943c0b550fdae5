// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// An exporter is a backend.Exporter that can be ended.
type exporter interface {
	backend.Exporter
	Close() error
}

// A kind is a way to show volumes to the kernel as block devices.
type kind struct {
	name  string
	lacks func() error // says what the machine lacks, or nil

	// start makes an exporter. The directory is one of its own.
	start func(dir string) (exporter, error)
}

var kinds = []kind{
	{
		name:  "fuse",
		lacks: fuse.Available,
		start: func(dir string) (exporter, error) {
			e, err := fuse.New(fuse.Options{Dir: dir})
			return &looped{e}, err
		},
	},
	{
		name:  "tcmu",
		lacks: tcmu.Available,
		start: func(string) (exporter, error) { return tcmu.New(tcmu.Options{}) },
	},
	{
		name:  "ublk",
		lacks: ublk.Available,
		start: func(dir string) (exporter, error) { return ublk.New(ublk.Options{Dir: dir}) },
	},
}

// each runs a test for every kind that the machine has means for, or for those
// of the names alone.
func each(t *testing.T, test func(t *testing.T, k kind), names ...string) {
	t.Helper()
	for _, k := range kinds {
		if len(names) > 0 && !slices.Contains(names, k.name) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			need.Root(t)
			need.Capability(t, k.name, k.lacks())
			test(t, k)
		})
	}
}

// exporter starts an exporter that ends with the test.
func (k kind) exporter(t testing.TB) exporter {
	t.Helper()
	e, err := k.start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// A looped exporter puts every FUSE file on a loop device.
type looped struct{ *fuse.Exporter }

func (e *looped) Export(ctx context.Context, id string, v backend.Volume) (backend.Device, error) {
	d, err := e.Exporter.Export(ctx, id, v)
	if err != nil {
		return nil, err
	}
	dev, ok := d.(*fuse.Device)
	if !ok {
		return nil, fmt.Errorf("export returned a %T", d)
	}
	_, writable := v.(backend.Writer)
	node, err := attachLoop(d.Path(), writable, !writable)
	if err != nil {
		return nil, errors.Join(err, d.Remove(ctx))
	}
	return &loopDevice{dev, node}, nil
}

// A loopDevice is a FUSE file on a loop device.
type loopDevice struct {
	*fuse.Device
	node string
}

func (d *loopDevice) Path() string { return d.node }

func (d *loopDevice) Remove(ctx context.Context) error {
	select {
	case <-d.Done(): // the node may be another's by now
		return d.Device.Remove(ctx)
	default:
	}
	f, err := os.OpenFile(d.node, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is mounted: %w", d.node, backend.ErrBusy)
	}
	if err != nil {
		return err
	}
	_ = f.Close()
	return errors.Join(blockmount.DetachLoop(d.Device.Path()), d.Device.Remove(ctx))
}

// attachLoop puts file on a free loop device. Direct keeps the page cache from
// between the two, as the project's mounts do when they only read.
func attachLoop(file string, writable, direct bool) (node string, err error) {
	args := []string{"--find", "--show", "--direct-io=" + map[bool]string{true: "on", false: "off"}[direct]}
	if !writable {
		args = append(args, "--read-only")
	}
	out, err := tool("losetup", append(args, file)...)
	return strings.TrimSpace(out), err
}

// tool runs a program to its end and returns what it said.
func tool(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...) //nolint:noctx // what waits for a device cannot be killed
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C")
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s%s", cmd.Args, err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}
