// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/download"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/image/gzidx"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// Devices whose layers have their content in the original layer.

// nativeOff is where in the tests' device the layer below the one with a target
// shows, which has its bytes from 0 on.
const nativeOff = 2 << 20

// pushTurbo puts a compressed target and a native layer into the registry, and
// the layer that belongs to the target into files of dir. The device reads as content
// of the target, and from nativeOff on as the same that the native layer holds.
func (n *node) pushTurbo(dir string) (v *spec.Volume, content []byte) {
	n.t.Helper()
	content = []byte(hex.EncodeToString(fetchertest.Content(contentSize/2, 1)))
	target := n.registry.AddBlob("test/image", n.compress(content, filepath.Join(dir, "gzip.meta")))
	native := n.registry.AddBlob("test/image", n.layer(lsmt.BuilderOptions{}, func(b *lsmt.Builder) error {
		_, err := b.WriteAt(n.t.Context(), content, nativeOff)
		_, low := b.WriteAt(n.t.Context(), bytes.Repeat([]byte("x"), contentSize), 0)
		return errors.Join(err, low)
	}))
	meta := n.layer(lsmt.BuilderOptions{Target: true}, func(b *lsmt.Builder) error {
		return b.MapContent(n.t.Context(), 0, contentSize, 0)
	})
	if err := os.WriteFile(filepath.Join(dir, "ext4.fs.meta"), meta, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return &spec.Volume{
		RepoBlobURL: strings.TrimSuffix(target.URL, "/"+target.Digest.String()),
		Lowers: []spec.Lower{
			{Digest: native.Digest, Size: native.Size},
			{
				Dir: dir, File: filepath.Join(dir, "ext4.fs.meta"),
				TargetDigest: target.Digest, GzipIndex: filepath.Join(dir, "gzip.meta"),
			},
		},
	}, content
}

// compress returns content as gzip, and writes the index of that.
func (n *node) compress(content []byte, index string) []byte {
	n.t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(content)
	if err = errors.Join(err, z.Close()); err != nil {
		n.t.Fatal(err)
	}
	r := gzidx.NewReader(bytes.NewReader(packed.Bytes()), gzidx.Options{Span: 64 << 10})
	if _, err := io.Copy(io.Discard, r); err != nil {
		n.t.Fatal(err)
	}
	f, err := os.Create(index)
	if err != nil {
		n.t.Fatal(err)
	}
	_, err = r.WriteIndex(f)
	if err = errors.Join(err, f.Close()); err != nil {
		n.t.Fatal(err)
	}
	return packed.Bytes()
}

func (n *node) layer(opts lsmt.BuilderOptions, fill func(*lsmt.Builder) error) []byte {
	n.t.Helper()
	var out bytes.Buffer
	opts.VirtualSize, opts.TempDir = 1<<30, n.t.TempDir()
	b, err := lsmt.Build(&out, nil, opts)
	if err != nil {
		n.t.Fatal(err)
	}
	if err = errors.Join(fill(b), b.Finish(n.t.Context()), b.Close()); err != nil {
		n.t.Fatal(err)
	}
	return out.Bytes()
}

// asked returns the requests for the target of v since the log was reset.
func (n *node) asked(v *spec.Volume) []fetchertest.Request {
	return slices.DeleteFunc(n.registry.Log(), func(q fetchertest.Request) bool {
		return !strings.Contains(q.Path, v.Lowers[1].TargetDigest.String())
	})
}

// TestTurboIsLazy: attaching asks for nothing of the target, a read for little,
// and who has read all of it needs no registry the next time.
func TestTurboIsLazy(t *testing.T) {
	o := quick(20 * time.Second)
	o.cache.Dir = t.TempDir()
	dir := t.TempDir()
	var v *spec.Volume
	var content []byte
	t.Run("first", func(t *testing.T) {
		n := newNodeOf(t, o)
		v, content = n.pushTurbo(dir)
		a := n.attach("1", n.save("1", v))
		if log := n.asked(v); len(log) != 0 {
			t.Errorf("attaching asked for %d ranges of the target", len(log))
		}
		wantRead(t, a.Path, content)
		log := n.asked(v)
		var asked int64
		for _, q := range log {
			asked += q.N
		}
		// Beside what was read, it is what the kernel reads ahead by then.
		if len(log) == 0 || len(log) > 12 || asked > contentSize/2 {
			t.Errorf("a read of %d bytes asked for %d in %d requests", readLen, asked, len(log))
		}
		wantTurbo(t, a.Path, content)
		if a = n.attach("1", a.SpecPath); a.FetchedBytes == 0 || a.FetchedBytes > 2*contentSize {
			t.Errorf("%d bytes are said to be fetched", a.FetchedBytes)
		}
	})
	t.Run("second", func(t *testing.T) {
		n := newNodeOf(t, o) // the registry of the first is gone
		wantTurbo(t, n.attach("1", n.save("1", v)).Path, content)
	})
}

// wantTurbo expects all that a device of pushTurbo shows.
func wantTurbo(t *testing.T, device string, content []byte) {
	t.Helper()
	wantAll(t, device, content)
	f, err := openDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(content))
	if _, err := f.ReadAt(got, nativeOff); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the native layer reads wrong bytes, or fails: %v", err)
	}
}

// TestTurboFaults: what passes, a reader does not notice; what lasts, it gets as
// an EIO, at once where waiting is of no use, and never as wrong bytes.
func TestTurboFaults(t *testing.T) {
	for _, tc := range []fault{
		{"404", fetchertest.Fault{Status: 404}, true},
		{"503", fetchertest.Fault{Status: 503}, false},
		{"cut body", fetchertest.Fault{Body: fetchertest.Cut}, false},
		{"stall in the body", fetchertest.Fault{Body: fetchertest.Stall}, false},
		{"other bytes", fetchertest.Fault{Body: fetchertest.Corrupt, After: 5000}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			patience := 300 * time.Millisecond
			if tc.lasts {
				patience = 20 * time.Second // not to be made use of
			}
			n := newNodeOf(t, quick(patience))
			v, content := n.pushTurbo(t.TempDir())
			device := n.attach("1", n.save("1", v)).Path
			tc.fault.Times = -1
			n.registry.Fault(tc.fault)
			wantEIO(t, device)
			n.registry.ClearFaults()
			n.registry.Release()
			wantRecovery(t, device, content)
			wantTurbo(t, device, content)
		})
	}
}

// TestTurboPassingFault: bytes that are wrong, or missing, are asked for again
// before the reader hears of it.
func TestTurboPassingFault(t *testing.T) {
	for _, body := range []fetchertest.BodyFault{fetchertest.Corrupt, fetchertest.Cut} {
		n := newNodeOf(t, quick(20*time.Second))
		v, content := n.pushTurbo(t.TempDir())
		device := n.attach("1", n.save("1", v)).Path
		n.registry.Fault(fetchertest.Fault{Body: body, After: 5000, Times: 1})
		wantRead(t, device, content)
	}
}

// TestTurboOfAnotherTarget: a target that is not the one that its index was made
// of is an EIO; that it is missing, too. That its size is wrong, may be a
// proxy's fault and pass.
func TestTurboOfAnotherTarget(t *testing.T) {
	for _, tc := range []struct {
		name     string
		patience time.Duration
		target   func(size int) []byte // nil for none
	}{
		{"missing", time.Minute, nil},
		{"another content", time.Minute, func(size int) []byte { return fetchertest.Content(size, 2) }},
		{"another size", 300 * time.Millisecond, func(size int) []byte { return fetchertest.Content(2*size, 2) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := newNodeOf(t, quick(tc.patience))
			v, content := n.pushTurbo(t.TempDir())
			v.Lowers[1].TargetDigest = digest.FromString("nowhere")
			if tc.target != nil {
				size := len(n.compress(content, filepath.Join(n.dir, "unused")))
				v.Lowers[1].TargetDigest = n.registry.AddBlob("test/image", tc.target(size)).Digest
			}
			device := n.attach("1", n.save("1", v)).Path
			wantEIO(t, device)
			if got, err := readAt(device, nativeOff); err != nil || !bytes.Equal(got, content[:readLen]) {
				t.Errorf("the native layer below reads wrong bytes, or %v", err)
			}
		})
	}
}

// TestTurboHang: while a target hangs, its readers wait, those of other layers
// and devices do not.
func TestTurboHang(t *testing.T) {
	n := newNodeOf(t, quick(4*time.Second))
	v, content := n.pushTurbo(t.TempDir())
	device := n.attach("1", n.save("1", v)).Path
	native := n.attach("2", n.save("2", &spec.Volume{RepoBlobURL: v.RepoBlobURL, Lowers: v.Lowers[:1]})).Path
	if _, err := readAt(native, nativeOff); err != nil {
		t.Fatal(err)
	}
	n.registry.ResetLog()
	n.registry.Fault(fetchertest.Fault{Hang: true, Times: -1})
	done := make(chan error, 1)
	go func() {
		_, err := read(t, device)
		done <- err
	}()
	if err := n.registry.Await(t.Context(), fetchertest.Origin, 1); err != nil {
		t.Fatal(err)
	}
	for _, device := range []string{device, native} {
		if got, err := readAt(device, nativeOff); err != nil || !bytes.Equal(got, content[:readLen]) {
			t.Errorf("a read beside the one that hangs: wrong bytes, or %v", err)
		}
	}
	lookAround(t, device)
	select {
	case err := <-done:
		t.Errorf("the reader of the target was back first, with %v", err)
	default:
		if err := <-done; !errors.Is(err, unix.EIO) {
			t.Errorf("got %v, want EIO", err)
		}
	}
	n.registry.ClearFaults()
	n.registry.Release()
	wantRecovery(t, device, content)
}

func readAt(device string, off int64) ([]byte, error) {
	f, err := openDevice(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := make([]byte, readLen)
	_, err = f.ReadAt(p, off)
	return p, err
}

// TestTurboDownload: downloads bring native layers to the node, and leave
// targets alone.
func TestTurboDownload(t *testing.T) {
	o := quick(20 * time.Second)
	o.download = &download.Options{Delay: time.Millisecond}
	n := newNodeOf(t, o)
	v, content := n.pushTurbo(t.TempDir())
	v.Lowers[0].Dir = t.TempDir()
	a := n.attach("1", n.save("1", v))
	for a.LocalBytes < a.LayerBytes || a.LayerBytes == 0 {
		if a = n.attach("1", a.SpecPath); t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
	}
	if a.LayerBytes != v.Lowers[0].Size {
		t.Errorf("%d bytes were to be downloaded, want %d", a.LayerBytes, v.Lowers[0].Size)
	}
	if log := n.asked(v); len(log) != 0 {
		t.Errorf("the target was asked for %d times", len(log))
	}
	wantTurbo(t, a.Path, content)
}
