// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/blockd"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A host is a machine on which block daemons run one after the other.
type host struct {
	*blockd.Daemon
	t      *testing.T
	dir    string // of specs and layers
	state  string
	kernel *kernel
	proc   *process
}

func newHost(t *testing.T) *host {
	h := &host{t: t, dir: t.TempDir(), state: t.TempDir(), kernel: newKernel(t)}
	h.start()
	return h
}

// start starts a daemon in place of one that is dead.
func (h *host) start() {
	h.t.Helper()
	h.proc = &process{kernel: h.kernel}
	h.startOn(blockd.Exporter{Name: "kernel", Exporter: h.proc})
}

func (h *host) startOn(first blockd.Exporter, former ...blockd.Exporter) {
	h.t.Helper()
	d, err := blockd.New(blockd.Options{
		StateDir: h.state,
		Blobs:    fetcher.Schemes{"file": file.Opener{}},
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err == nil {
		err = d.Start(h.t.Context(), first, former...)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.Daemon = d
	h.t.Cleanup(func() { _ = d.Close(context.Background()) }) // ends what it has under way
}

// kill ends the daemon as SIGKILL does, and starts the next one.
func (h *host) kill() {
	h.t.Helper()
	if err := h.Close(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.kernel = h.kernel.copy()
	h.start()
}

// spec writes a spec whose layer is a copy of a golden one, and returns its
// path and the layer's.
func (h *host) spec(name string) (path, layer string) {
	h.t.Helper()
	_, files := need.Golden(h.t, "rw/a.commit")
	content, err := os.ReadFile(files["rw/a.commit"].Path)
	if err != nil {
		h.t.Fatal(err)
	}
	path, layer = filepath.Join(h.dir, name+".json"), filepath.Join(h.dir, name+".layer")
	v := &spec.Volume{Lowers: []spec.Lower{{File: layer}}}
	if err := errors.Join(os.WriteFile(layer, content, 0o600), v.Save(path)); err != nil {
		h.t.Fatal(err)
	}
	return path, layer
}

// await waits until the daemon's only device is in a state, "" for none.
func (h *host) await(want blockapi.State) (a blockapi.Attachment) {
	h.t.Helper()
	for {
		list, err := h.Attachments(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		if a = (blockapi.Attachment{}); len(list) == 1 {
			a = list[0]
		}
		if a.State == want && len(list) < 2 {
			return a
		}
		runtime.Gosched()
	}
}

func (h *host) wantNothing() {
	h.t.Helper()
	h.await("")
	if ids := h.kernel.ids(); len(ids) > 0 {
		h.t.Errorf("the kernel has %v", ids)
	}
	if left, _ := filepath.Glob(h.state + "/*/*"); len(left) > 0 {
		h.t.Errorf("the state directory holds %v", left)
	}
}

// TestDevicesOutliveTheProcess: what was attached before a kill is there after
// it, under the same spec only, and can be detached.
func TestDevicesOutliveTheProcess(t *testing.T) {
	h := newHost(t)
	path, _ := h.spec("a")
	other, _ := h.spec("b")
	before, err := h.Attach(t.Context(), "1", path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		h.kill()
		after, err := h.Attach(t.Context(), "1", path)
		if err != nil || after != before {
			t.Errorf("after a kill: %+v, %v, want %+v", after, err, before)
		}
	}
	if _, err := h.Attach(t.Context(), "1", other); !errdefs.IsAlreadyExists(err) {
		t.Errorf("with another spec: %v, want already exists", err)
	}
	if err := h.Detach(t.Context(), "1"); err != nil {
		t.Error(err)
	}
	h.wantNothing()
}

// TestCrashAtEachStep kills the daemon before and after it makes, and before
// and after it removes a device: the next one agrees with the kernel.
func TestCrashAtEachStep(t *testing.T) {
	h := newHost(t)
	path, _ := h.spec("a")
	var crashes []*host
	crash := func() {
		c := &host{t: t, dir: h.dir, state: t.TempDir(), kernel: h.kernel.copy()}
		if err := os.CopyFS(c.state, os.DirFS(h.state)); err != nil {
			t.Fatal(err)
		}
		crashes = append(crashes, c)
	}
	h.proc.before, h.proc.after = crash, crash
	if _, err := h.Attach(t.Context(), "1", path); err != nil {
		t.Fatal(err)
	}
	if err := h.Detach(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	h.proc.before, h.proc.after = nil, nil
	for i, c := range crashes {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			c.t = t
			c.start()
			if exists := len(c.kernel.ids()) > 0; exists {
				c.await(blockapi.Serving)
			} else {
				c.wantNothing()
			}
			if _, err := c.Attach(t.Context(), "1", path); err != nil {
				t.Error(err)
			}
			if err := c.Detach(t.Context(), "1"); err != nil {
				t.Error(err)
			}
			c.wantNothing()
		})
	}
}

// TestSuspended: a device whose layer cannot be opened waits, says why, and is
// resumed by the next Attach that can.
func TestSuspended(t *testing.T) {
	h := newHost(t)
	path, layer := h.spec("a")
	if _, err := h.Attach(t.Context(), "1", path); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(layer, layer+".away"); err != nil {
		t.Fatal(err)
	}
	h.kill()
	for a := h.await(blockapi.Suspended); !strings.Contains(a.Error, layer); a = h.await(blockapi.Suspended) {
		runtime.Gosched() // until it was tried
	}
	if _, err := h.Attach(t.Context(), "1", path); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), layer) {
		t.Errorf("attach: %v, want the missing layer", err)
	}
	if err := os.Rename(layer+".away", layer); err != nil {
		t.Fatal(err)
	}
	a, err := h.Attach(t.Context(), "1", path)
	if err != nil || a.State != blockapi.Serving || a.Path == "" {
		t.Errorf("got %+v, %v, want it served", a, err)
	}
	if err := h.Detach(t.Context(), "1"); err != nil {
		t.Error(err)
	}
	h.wantNothing()
}

// TestDetachSuspended removes a device without its layers, unless it is in
// use.
func TestDetachSuspended(t *testing.T) {
	h := newHost(t)
	path, layer := h.spec("a")
	if _, err := h.Attach(t.Context(), "1", path); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(layer); err != nil {
		t.Fatal(err)
	}
	h.kernel.setBusy("1", true)
	h.kill()
	if err := h.Detach(t.Context(), "1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("in use: %v, want failed precondition", err)
	}
	h.kernel.setBusy("1", false)
	if err := h.Detach(t.Context(), "1"); err != nil {
		t.Error(err)
	}
	h.wantNothing()
}

// TestOrphans: a device whose spec is gone goes, but not from under its users.
func TestOrphans(t *testing.T) {
	h := newHost(t)
	path, _ := h.spec("a")
	if _, err := h.Attach(t.Context(), "1", path); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	h.kernel.setBusy("1", true)
	h.kill()
	for a := h.await(blockapi.Suspended); !strings.Contains(a.Error, path); a = h.await(blockapi.Suspended) {
		runtime.Gosched() // until it was tried
	}
	h.kernel.setBusy("1", false)
	h.kill()
	h.await("")
	h.wantNothing()
}

// TestTakeOver: the devices of the reference's daemon are served under the
// spec that it was given, and go when the program that made them removes them.
func TestTakeOver(t *testing.T) {
	h := newHost(t)
	path, _ := h.spec("a")
	h.kernel.add("1", path+";1")
	h.kernel.add("2", "/gone/config.v1.json")
	h.kill()
	a := h.await(blockapi.Serving)
	if a.SpecPath != path {
		t.Errorf("got %+v, want the device of %s", a, path)
	}
	if b, err := h.Attach(t.Context(), "1", path); err != nil || b.Path != a.Path {
		t.Errorf("attach: %+v, %v, want what was there", b, err)
	}
	h.kernel.mu.Lock()
	d := h.kernel.objects["1"].served
	h.kernel.mu.Unlock()
	d.vanish()
	h.wantNothing()
}

// TestFormerExporter: devices of an exporter that is not chosen any more are
// served; those of one that cannot outlive its process are forgotten.
func TestFormerExporter(t *testing.T) {
	h := newHost(t)
	path, _ := h.spec("a")
	if _, err := h.Attach(t.Context(), "1", path); err != nil {
		t.Fatal(err)
	}
	for range 2 { // device 2 is forgotten in between
		h.kernel = h.kernel.copy()
		h.proc = &process{kernel: h.kernel}
		former := blockd.Exporter{Name: "kernel", Exporter: h.proc}
		h.startOn(blockd.Exporter{Name: "mortal", Exporter: mortal{&process{kernel: newKernel(t)}}}, former)
		if a := h.await(blockapi.Serving); a.Exporter != "kernel" {
			t.Errorf("got %+v, want the one of the former exporter", a)
		}
		a, err := h.Attach(t.Context(), "2", path)
		if err != nil || a.Exporter != "mortal" {
			t.Errorf("got %+v, %v, want one of the chosen exporter", a, err)
		}
		next, err := blockd.New(blockd.Options{StateDir: h.state})
		if err != nil || len(next.Former()) != 2 {
			t.Errorf("there are records of %v, %v", next.Former(), err)
		}
	}
	for _, id := range []string{"1", "2"} {
		if err := h.Detach(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	h.wantNothing()
}

// A power cut may spoil records; they are of no device.
func TestSpoiltRecord(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"devices/1", "new-device-123"} {
		if err := os.WriteFile(filepath.Join(h.state, name), []byte(`{"spec":`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.kill()
	h.wantNothing()
	if left, _ := filepath.Glob(h.state + "/new-*"); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestAttachRefuses(t *testing.T) {
	h := newHost(t)
	path, _ := h.spec("a")
	for _, c := range [][2]string{{"", path}, {"..", path}, {"a/b", path}, {strings.Repeat("x", 256), path}, {"1", "a.json"}} {
		if _, err := h.Attach(t.Context(), c[0], c[1]); !errdefs.IsInvalidArgument(err) {
			t.Errorf("id %q, spec %s: %v, want invalid argument", c[0], c[1], err)
		}
	}
}

// TestAdopt opens what another program makes a device of, and tells it how
// that went as the reference's daemon does.
func TestAdopt(t *testing.T) {
	h := newHost(t)
	path, layer := h.spec("a")
	v := &spec.Volume{Lowers: []spec.Lower{{File: layer}}, ResultFile: "result"}
	if err := v.Save(path); err != nil {
		t.Fatal(err)
	}
	vol, err := h.Adopt(t.Context(), "1", path+";1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vol.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	if err := vol.Close(); err != nil {
		t.Error(err)
	}
	result := filepath.Join(h.dir, "result")
	if text, err := os.ReadFile(result); err != nil || string(text) != "success" {
		t.Errorf("result file says %q, %v", text, err)
	}
	if err := os.Remove(layer); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Adopt(t.Context(), "1", path); err == nil {
		t.Error("adopted without its layer")
	}
	if text, err := os.ReadFile(result); err != nil || !strings.HasPrefix(string(text), "failed:") {
		t.Errorf("result file says %q, %v", text, err)
	}
	h.wantNothing()
}
