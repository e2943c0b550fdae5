// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
)

// Recovery says how to test that devices outlive the process. The package's
// TestMain calls Main.
type Recovery struct {
	// New makes an exporter as an earlier process did that was given the same
	// directory. It may use what is beside the directory, not what is in it.
	New func(dir string) (Survivor, error)

	// Tune does to the disk, before it is used, what an administrator may do;
	// it may be nil.
	Tune func(t *testing.T, disk string)

	// Kills is how often to kill a process that serves a device.
	Kills int

	// Left fails the test if the kernel has devices.
	Left func(t *testing.T)
}

// RunRecovery holds an exporter whose devices outlive the process against the
// contract.
func RunRecovery(t *testing.T, r Recovery) {
	t.Run("Kill", r.kill)
	t.Run("KillWhileMaking", r.killWhileMaking)
	t.Run("KillInScan", r.killInScan)
	t.Run("Abandon", r.abandon)
	t.Run("Discard", r.discard)
}

// Recover resumes every device that an earlier process left, on the volume that
// open returns for its id.
func Recover(ctx context.Context, e backend.Recoverer, open func(context.Context, string) (backend.Volume, error)) (devices []backend.Device, err error) {
	ids, err := e.Left(ctx)
	for _, id := range ids {
		v, e1 := open(ctx, id)
		if e1 == nil {
			var d backend.Device
			if d, e1 = e.Resume(ctx, id, v); e1 == nil {
				devices = append(devices, d)
				continue
			}
			e1 = errors.Join(e1, v.Close())
		}
		err = errors.Join(err, e1)
	}
	return devices, err
}

// dir returns a directory for volumes, with an empty one if it has a name.
func (r Recovery) dir(t *testing.T, volume string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volumes")
	must(t, os.Mkdir(dir, 0o700))
	if volume != "" {
		must(t, os.WriteFile(filepath.Join(dir, volume), make([]byte, LoadSize), 0o600))
	}
	return dir
}

// kill kills the process that serves a device, over and over, under reads and
// writes that are verified: nobody may see an error or a wrong byte.
func (r Recovery) kill(t *testing.T) {
	dir := r.dir(t, "kill")
	c := startChild(t, "serve", dir)
	disk := c.line(t)
	if r.Tune != nil {
		r.Tune(t, disk)
	}
	l := StartLoad(t, disk)
	for range r.Kills {
		if got := c.line(t); got != "ready" {
			t.Fatalf("the child says %q", got)
		}
		l.Await(2 * workers)
		c.kill(t)
		c.wait()
		c = startChild(t, "serve", dir)
	}
	c.line(t)
	l.Stop(t)
	c.kill(t)
	c.wait()
	r.removeAll(t, dir)
}

// removeAll takes over what a child has left and removes it.
func (r Recovery) removeAll(t *testing.T, dir string) {
	t.Helper()
	e, err := r.New(dir)
	must(t, err)
	devices, err := Recover(t.Context(), e, filesOf(dir))
	if err != nil || len(devices) != 1 {
		t.Errorf("recovered %d devices, %v, want one", len(devices), err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	r.Left(t)
}

// killWhileMaking kills a process that makes and removes devices: the next one
// finds and removes whatever is left.
func (r Recovery) killWhileMaking(t *testing.T) {
	for i := range 4 {
		dir := r.dir(t, "")
		c := startChild(t, "churn", dir)
		for range 1 + i {
			c.line(t)
		}
		c.kill(t)
		e, err := r.New(dir) // lets the dead go
		must(t, err)
		_, err = Recover(t.Context(), e, func(context.Context, string) (backend.Volume, error) {
			return NewMemVolume(1 << 20), nil
		})
		if err != nil {
			t.Error(err)
		}
		c.wait()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		r.Left(t)
	}
}

// killInScan kills a process while it makes a device, in which the kernel
// already looks for partitions. Its threads wait for what they read, and must
// not keep the next process from serving or removing the device.
func (r Recovery) killInScan(t *testing.T) {
	for name, next := range map[string]func(context.Context, Survivor) error{
		"resume": func(ctx context.Context, e Survivor) error {
			_, err := Recover(ctx, e, func(context.Context, string) (backend.Volume, error) {
				return NewMemVolume(LoadSize), nil
			})
			return err
		},
		"discard": func(ctx context.Context, e Survivor) error { return e.Discard(ctx, stallID) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := r.dir(t, "")
			c := startChild(t, "stall", dir)
			c.line(t) // the first read has come, or there is none
			time.Sleep(settle)
			c.kill(t)
			e, err := r.New(dir)
			must(t, err)
			if err := next(t.Context(), e); err != nil {
				t.Error(err)
			}
			c.wait()
			must(t, e.Close())
			r.Left(t)
		})
	}
}

// settle is what a child that stalls gets to wait for its disk in every way it
// can, before it is killed.
const settle = 100 * time.Millisecond

// abandon hands a device from one exporter to the next while it is read.
func (r Recovery) abandon(t *testing.T) {
	dir := r.dir(t, "abandon")
	first, err := r.New(dir)
	must(t, err)
	v, err := OpenFile(filepath.Join(dir, "abandon"))
	must(t, err)
	d, err := first.Export(t.Context(), "abandon", v)
	must(t, err)
	l := StartLoad(t, d.Path())
	l.Await(workers)
	must(t, first.Abandon())
	<-d.Done()
	if err := v.Sync(t.Context()); d.Err() == nil || !errors.Is(err, os.ErrClosed) {
		t.Errorf("abandoned device: Err() = %v, and its volume answers %v", d.Err(), err)
	}
	second, err := r.New(dir)
	must(t, err)
	wrong := func(context.Context, string) (backend.Volume, error) { return NewMemVolume(512), nil }
	if devices, err := Recover(t.Context(), second, wrong); err == nil || len(devices) > 0 {
		t.Errorf("recovered %d devices with a volume of another size, %v", len(devices), err)
	}
	devices, err := Recover(t.Context(), second, filesOf(dir))
	if err != nil || len(devices) != 1 || devices[0].ID() != "abandon" || devices[0].Path() != d.Path() {
		t.Fatalf("recovered %v, %v, want the device", devices, err)
	}
	l.Await(4 * workers)
	l.Stop(t)
	if again, err := Recover(t.Context(), second, filesOf(dir)); err != nil || len(again) != 0 {
		t.Errorf("recovered %d devices twice, %v", len(again), err)
	}
	must(t, second.Close())
	r.Left(t)
}

// discard removes a device that nobody knows any more, but not from under its
// users.
func (r Recovery) discard(t *testing.T) {
	dir := r.dir(t, "orphan")
	first, err := r.New(dir)
	must(t, err)
	v, err := OpenFile(filepath.Join(dir, "orphan"))
	must(t, err)
	d, err := first.Export(t.Context(), "orphan", v)
	must(t, err)
	user, err := os.Open(d.Path())
	must(t, err)
	must(t, first.Abandon())
	second, err := r.New(dir)
	must(t, err)
	if err := second.Discard(t.Context(), "orphan"); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("discarded with %v, want that it is in use", err)
	}
	must(t, user.Close())
	for _, id := range []string{"orphan", "orphan", "never"} {
		if err := second.Discard(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if ids, err := second.Left(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("left: %q, %v, want none", ids, err)
	}
	missing := NewMemVolume(LoadSize)
	if _, err := second.Resume(t.Context(), "orphan", missing); !errors.Is(err, backend.ErrGone) {
		t.Errorf("resumed what is gone: %v", err)
	}
	if _, err := os.Stat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the disk of a discarded device: %v, want none", err)
	}
	must(t, second.Close())
	r.Left(t)
}
