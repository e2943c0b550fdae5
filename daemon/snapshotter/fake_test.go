// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A fakeBlock is a block daemon whose devices are regular files: the file
// system image registered for the digest of a spec's topmost layer, or a
// writable copy of it.
type fakeBlock struct {
	dir string // of the files that stand in for devices

	// hook, if set, is called as a call begins, and may fail it.
	hook func(ctx context.Context, call, id string) error

	// after, if set, is called when a call has had its effect, and may lose the
	// answer.
	after func(call string) error

	// expect, if set, is called by Expect.
	expect func(ctx context.Context, repository string, blobs []blockapi.Blob) error

	mu      sync.Mutex // guards the following
	layers  map[digest.Digest]string
	devices map[string]blockapi.Attachment
	calls   []string
}

func newFake(t testing.TB) *fakeBlock {
	return &fakeBlock{dir: t.TempDir(), layers: map[digest.Digest]string{}, devices: map[string]blockapi.Attachment{}}
}

func (f *fakeBlock) begin(ctx context.Context, call, id string) error {
	f.mu.Lock()
	f.calls = append(f.calls, call+" "+id)
	f.mu.Unlock()
	if f.hook == nil {
		return nil
	}
	return f.hook(ctx, call, id)
}

func (f *fakeBlock) Attach(ctx context.Context, id, specPath string) (blockapi.Attachment, error) {
	a, err := f.attach(ctx, id, specPath)
	return a, f.end("attach", err)
}

// end returns the error of a call that has ended with err.
func (f *fakeBlock) end(call string, err error) error {
	if err != nil || f.after == nil {
		return err
	}
	return f.after(call)
}

func (f *fakeBlock) attach(ctx context.Context, id, specPath string) (blockapi.Attachment, error) {
	if err := f.begin(ctx, "attach", id); err != nil {
		return blockapi.Attachment{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a, ok := f.devices[id]; ok {
		if a.SpecPath != specPath {
			return a, errdefs.ErrAlreadyExists
		}
		return a, nil
	}
	v, err := spec.Load(specPath)
	if err != nil {
		return blockapi.Attachment{}, err
	}
	path, err := f.device(id, v)
	if err != nil {
		return blockapi.Attachment{}, err
	}
	a := blockapi.Attachment{ID: id, SpecPath: specPath, Path: path, File: true, Writable: v.Writable(), State: blockapi.Serving}
	f.devices[id] = a
	return a, nil
}

func (f *fakeBlock) device(id string, v *spec.Volume) (string, error) {
	if !v.Writable() {
		path := filepath.Join(f.dir, id)
		_ = os.Remove(path) // of a daemon that was killed
		return path, copySparse(f.content(v), path)
	}
	if _, err := os.Stat(v.Upper.Data); err == nil {
		return v.Upper.Data, nil
	}
	if err := os.WriteFile(v.Upper.Index, nil, 0o600); err != nil {
		return "", err
	}
	if len(v.Lowers) > 0 {
		return v.Upper.Data, copySparse(f.content(v), v.Upper.Data)
	}
	if err := os.WriteFile(v.Upper.Data, nil, 0o600); err != nil {
		return "", err
	}
	return v.Upper.Data, os.Truncate(v.Upper.Data, int64(v.Upper.VSizeGB)<<30)
}

// content returns the file with the content of v's topmost layer.
func (f *fakeBlock) content(v *spec.Volume) string {
	l := v.Lowers[len(v.Lowers)-1]
	for _, name := range []string{"overlaybd.commit", "overlaybd.sealed"} {
		if path := filepath.Join(l.Dir, name); l.Digest == "" {
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
	}
	if l.TargetDigest != "" {
		return f.layers[l.TargetDigest]
	}
	return f.layers[l.Digest]
}

func copySparse(src, dst string) error {
	out, err := exec.Command("cp", "--sparse=always", src, dst).CombinedOutput() //nolint:noctx // instant
	if err != nil {
		return fmt.Errorf("copy %s: %w: %s", src, err, out)
	}
	return nil
}

func (f *fakeBlock) Detach(ctx context.Context, id string) error {
	return f.end("detach", f.detach(ctx, id))
}

func (f *fakeBlock) detach(ctx context.Context, id string) error {
	if err := f.begin(ctx, "detach", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.devices[id]
	if !ok {
		return nil
	}
	if users := usersOf(a.Path); len(users) > 0 {
		return fmt.Errorf("device %s is used by %v: %w", id, users, errdefs.ErrFailedPrecondition)
	}
	delete(f.devices, id)
	if a.Writable {
		return nil
	}
	return os.Remove(a.Path)
}

// usersOf lists the loop devices and mounts of the file path.
func usersOf(path string) (users []string) {
	attrs, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, attr := range attrs {
		if text, _ := os.ReadFile(attr); strings.HasPrefix(string(text), path) {
			users = append(users, attr)
		}
	}
	table, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(table)) {
		if strings.HasPrefix(line, path) {
			users = append(users, line)
		}
	}
	return users
}

func (f *fakeBlock) Attachments(ctx context.Context) ([]blockapi.Attachment, error) {
	if err := f.begin(ctx, "attachments", ""); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []blockapi.Attachment
	for _, a := range f.devices {
		all = append(all, a)
	}
	return all, nil
}

func (f *fakeBlock) Expect(ctx context.Context, repository string, blobs ...blockapi.Blob) error {
	if f.expect == nil {
		return nil
	}
	return f.expect(ctx, repository, blobs)
}

func (f *fakeBlock) Seal(ctx context.Context, specPath, dst string) error {
	return f.end("seal", f.seal(ctx, specPath, dst))
}

func (f *fakeBlock) seal(ctx context.Context, specPath, dst string) error {
	if err := f.begin(ctx, "seal", specPath); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.devices {
		if a.SpecPath == specPath {
			return fmt.Errorf("%s is attached: %w", specPath, errdefs.ErrFailedPrecondition)
		}
	}
	v, err := spec.Load(specPath)
	if err != nil {
		return err
	}
	if err := os.Rename(v.Upper.Data, dst); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(dst); err != nil {
		return err
	}
	return os.RemoveAll(v.Upper.Index)
}

// lose makes the daemon forget its devices, as if it had been killed.
func (f *fakeBlock) lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.devices)
}

func (f *fakeBlock) count(call string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if strings.HasPrefix(c, call+" ") {
			n++
		}
	}
	return n
}

// addLayer registers a layer whose device is an ext4 with one file, named
// "name" and holding text. It returns the digest.
func (f *fakeBlock) addLayer(t testing.TB, text string) digest.Digest {
	t.Helper()
	src, path := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(filepath.Join(src, "name"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(src, 0o751); err != nil {
		t.Fatal(err)
	}
	mkfs(t, need.Command(t, "mkfs.ext4"), "-q", "-F", "-O", "^has_journal", "-d", src, path, "8M")
	return f.register(path, text)
}

func (f *fakeBlock) register(path, text string) digest.Digest {
	f.mu.Lock()
	defer f.mu.Unlock()
	dgst := digest.FromString(text)
	f.layers[dgst] = path
	return dgst
}

// near has the device id come to the node.
func (f *fakeBlock) near(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.devices[id]
	a.Near = true
	f.devices[id] = a
}

func mkfs(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}
