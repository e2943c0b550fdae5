// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// What goes wrong with the source of a device, and what its reader sees. The
// reads go through all that a daemon has: FUSE, patience, formats, cache,
// retries, mirrors, limits, HTTP.

const (
	// contentSize is what the tests' image holds, in bytes: many extents, so
	// that what lies in the middle is not fetched by opening it.
	contentSize = 1 << 20
	extent      = 64 << 10

	readOff, readLen = 512 << 10, 128 << 10 // what the tests read
)

// quick are options under which a node notices quickly what goes wrong, and
// gives up after patience.
func quick(patience time.Duration) nodeOptions {
	return nodeOptions{
		remote:   registry.Options{Timeouts: rangeget.Timeouts{HeaderTimeout: 200 * time.Millisecond, IdleTimeout: 200 * time.Millisecond}},
		retry:    retry.Options{Budget: 50 * time.Millisecond, First: time.Millisecond, Longest: 10 * time.Millisecond},
		cache:    cache.Options{ExtentSize: extent, MaxExtent: extent, MaxInflightBytes: 8 << 20},
		patience: patience,
	}
}

// push puts a compressed layer of contentSize random bytes into the registry.
func (n *node) push() (v *spec.Volume, content []byte) {
	n.t.Helper()
	content = fetchertest.Content(contentSize, 1)
	up := spec.Upper{Data: filepath.Join(n.dir, "data"), Index: filepath.Join(n.dir, "index"), VSizeGB: 1}
	path := n.save("build", &spec.Volume{Upper: up})
	writeThrough(n.t, n.attach("build", path).Path, content)
	sealed := filepath.Join(n.dir, "sealed")
	if err := errors.Join(n.Detach(n.t.Context(), "build"), n.Seal(n.t.Context(), path, sealed)); err != nil {
		n.t.Fatal(err)
	}
	layer, err := os.ReadFile(sealed)
	if err != nil {
		n.t.Fatal(err)
	}
	var blob bytes.Buffer
	w, err := zfile.NewWriter(&blob, zfile.Options{})
	if err != nil {
		n.t.Fatal(err)
	}
	_, err = w.Write(layer)
	if err := errors.Join(err, w.Close()); err != nil {
		n.t.Fatal(err)
	}
	n.blob = blob.Bytes()
	ref := n.registry.AddBlob("test/image", n.blob)
	lower := spec.Lower{Digest: ref.Digest, Size: ref.Size}
	return &spec.Volume{RepoBlobURL: strings.TrimSuffix(ref.URL, "/"+ref.Digest.String()), Lowers: []spec.Lower{lower}}, content
}

// attachPushed returns the device of a layer in the registry, of whose log it
// is the last to have asked for anything.
func (n *node) attachPushed() (device string, content []byte) {
	n.t.Helper()
	v, content := n.push()
	a := n.attach("1", n.save("1", v))
	n.registry.ResetLog()
	return a.Path, content
}

// read reads [readOff, readOff+readLen) of the device.
func read(t *testing.T, device string) ([]byte, error) {
	t.Helper()
	f, err := openDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, readLen)
	_, err = f.ReadAt(p, readOff)
	return p, err
}

func wantRead(t *testing.T, device string, content []byte) {
	t.Helper()
	got, err := read(t, device)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content[readOff:readOff+readLen]) {
		t.Error("the device reads wrong bytes")
	}
}

func wantEIO(t *testing.T, device string) {
	t.Helper()
	if _, err := read(t, device); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
}

// A fault is what a source may do wrong.
type fault struct {
	name  string
	fault fetchertest.Fault
	lasts bool // at once: to try again is of no use
}

// faults are what a source may do wrong. A reader does not notice it when it
// passes; when it lasts, it gets an EIO, and its data once it is over.
var faults = []fault{
	{"401", fetchertest.Fault{Status: 401}, true},
	{"403", fetchertest.Fault{Status: 403}, true},
	{"404", fetchertest.Fault{Status: 404}, true},
	{"429", fetchertest.Fault{Status: 429}, false},
	{"500", fetchertest.Fault{Status: 500}, false},
	{"503", fetchertest.Fault{Status: 503}, false},
	{"connection reset", fetchertest.Fault{Reset: true}, false},
	{"short body", fetchertest.Fault{Body: fetchertest.Short}, false},
	{"cut body", fetchertest.Fault{Body: fetchertest.Cut}, false},
	{"another range", fetchertest.Fault{ContentRange: "bytes 0-9/300000"}, false},
	{"200 to a range far into the blob", fetchertest.Fault{IgnoreRange: true}, false},
	{"stall before the answer", fetchertest.Fault{Hang: true}, false},
	{"stall in the body", fetchertest.Fault{Body: fetchertest.Stall}, false},
}

func TestPassingFault(t *testing.T) {
	for _, tc := range faults {
		if tc.lasts {
			continue
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := newNodeOf(t, quick(time.Minute))
			device, content := n.attachPushed()
			tc.fault.Times = 3
			n.registry.Fault(tc.fault)
			wantRead(t, device, content)
			if got := len(n.registry.Log()); got < 4 {
				t.Errorf("%d requests were made: the fault was not met", got)
			}
		})
	}
}

func TestLastingFault(t *testing.T) {
	for _, tc := range faults {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			patience := 300 * time.Millisecond
			if tc.lasts {
				patience = 20 * time.Second // not to be made use of
			}
			n := newNodeOf(t, quick(patience))
			device, content := n.attachPushed()
			tc.fault.Times = -1
			n.registry.Fault(tc.fault)
			wantEIO(t, device)
			// Some per extent of the read; waiting would go on asking.
			if got := len(n.registry.Log()); tc.lasts && got > 12 {
				t.Errorf("%d requests were made, though trying again is of no use", got)
			}
			n.registry.ClearFaults()
			n.registry.Release()
			wantRecovery(t, device, content)
		})
	}
}

// wantRecovery expects the device to read well again, though requests that were
// under way may fail a few reads more.
func wantRecovery(t *testing.T, device string, content []byte) {
	t.Helper()
	for range 20 {
		if _, err := read(t, device); err == nil {
			break
		}
	}
	wantRead(t, device, content)
}

func TestExpiredRedirect(t *testing.T) {
	o := quick(20 * time.Second)
	o.registry.Redirect = true
	n := newNodeOf(t, o)
	device, content := n.attachPushed()
	n.registry.ExpireRedirects()
	wantRead(t, device, content)
}

// TestCorruptBytes are asked for again; if they stay so, they are an error and
// never data.
func TestCorruptBytes(t *testing.T) {
	n := newNodeOf(t, quick(20*time.Second))
	device, content := n.attachPushed()
	corrupt := fetchertest.Fault{Body: fetchertest.Corrupt, After: 100, Times: 2}
	n.registry.Fault(corrupt)
	wantRead(t, device, content)

	n = newNodeOf(t, quick(20*time.Second))
	device, content = n.attachPushed()
	corrupt.Times = -1
	n.registry.Fault(corrupt)
	wantEIO(t, device)
	n.registry.ClearFaults()
	wantRecovery(t, device, content)
}

// TestAttachOutcome: what an attach fails with, and that it can be repeated.
func TestAttachOutcome(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault fetchertest.Fault
		want  error
	}{
		{"403", fetchertest.Fault{Status: 403, Times: -1}, errdefs.ErrPermissionDenied},
		{"404", fetchertest.Fault{Status: 404, Times: -1}, errdefs.ErrNotFound},
		{"429", fetchertest.Fault{Status: 429, Times: -1}, errdefs.ErrUnavailable},
		{"503", fetchertest.Fault{Status: 503, Times: -1}, errdefs.ErrUnavailable},
		{"stall", fetchertest.Fault{Hang: true, Times: -1}, errdefs.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := newNodeOf(t, quick(20*time.Second))
			v, content := n.push()
			path := n.save("1", v)
			n.registry.Fault(tc.fault)
			_, err := n.Attach(t.Context(), "1", path)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), v.Lowers[0].Digest.String()) {
				t.Errorf("got %v; want %v naming the layer", err, tc.want)
			}
			n.registry.ClearFaults()
			n.registry.Release()
			wantRead(t, n.attach("1", path).Path, content)
		})
	}
}

func TestCredentials(t *testing.T) {
	for _, scheme := range []fetchertest.Auth{fetchertest.Basic, fetchertest.Bearer} {
		o := quick(20 * time.Second)
		o.registry = fetchertest.Options{Auth: scheme, Username: "user", Password: "right"}
		creds := make(auth.Static)
		o.remote.Credentials = creds
		n := newNodeOf(t, o)
		v, content := n.push()
		path := n.save("1", v)
		for _, password := range []string{"", "wrong"} {
			creds[n.registry.Host()] = fetcher.Credential{Username: "user", Password: password}
			if _, err := n.Attach(t.Context(), "1", path); !errdefs.IsPermissionDenied(err) {
				t.Errorf("password %q: got %v, want permission denied", password, err)
			} else if password != "" && strings.Contains(err.Error(), password+"@") {
				t.Errorf("the password is told: %v", err)
			}
		}
		creds[n.registry.Host()] = fetcher.Credential{Username: "user", Password: "right"}
		wantRead(t, n.attach("1", path).Path, content)
	}
}

// TestFullDisk: where the cache cannot write, reads go on without it.
func TestFullDisk(t *testing.T) {
	o := quick(20 * time.Second)
	o.cache.Dir = t.TempDir()
	if err := unix.Mount("tmpfs", o.cache.Dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(o.cache.Dir, 0); err != nil {
			t.Error(err)
		}
	})
	n := newNodeOf(t, o)
	device, content := n.attachPushed()
	for range 2 {
		got := make([]byte, contentSize)
		f, err := openDevice(device)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.ReadAt(got, 0)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, content) {
			t.Error("the device reads wrong bytes")
		}
	}
}
