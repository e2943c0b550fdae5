// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
)

// A rig is a snapshotter under test. When the test ends it must have left no
// mount and no loop device, and no directory without a snapshot.
type rig struct {
	*snapshotter.Snapshotter

	t    testing.TB
	opts snapshotter.Options
}

func newRig(t testing.TB, block blockapi.Service, change ...func(*snapshotter.Options)) *rig {
	t.Helper()
	r := &rig{t: t, opts: snapshotter.Options{Root: filepath.Join(t.TempDir(), "root"), Block: block}}
	for _, c := range change {
		c(&r.opts)
	}
	r.start()
	t.Cleanup(r.finish)
	return r
}

func (r *rig) start() {
	r.t.Helper()
	s, err := snapshotter.New(r.t.Context(), r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Snapshotter = s
}

// restart closes the snapshotter and opens it again, with its repairs done.
func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

func (r *rig) stop() {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Error(err)
	}
}

// finish removes all snapshots and looks for what is left.
func (r *rig) finish() {
	ctx := context.Background()
	r.removeAll(ctx)
	if err := r.Cleanup(ctx); err != nil {
		r.t.Error(err)
	}
	r.stop()
	for _, user := range usersOf(r.opts.Root) {
		r.t.Errorf("left behind: %s", user)
	}
	for _, m := range mountsBelow(r.opts.Root) {
		r.t.Errorf("left mounted: %s", m)
		_ = mount.UnmountAll(m, 0)
	}
	if dirs := r.dirs(); len(dirs) > 0 {
		r.t.Errorf("left directories %v", dirs)
	}
}

// removeAll removes every snapshot, children first.
func (r *rig) removeAll(ctx context.Context) {
	var all []snapshots.Info
	err := r.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		all = append(all, i)
		return nil
	})
	if err != nil {
		r.t.Error(err)
	}
	slices.SortFunc(all, func(a, b snapshots.Info) int { return b.Created.Compare(a.Created) })
	for _, i := range all {
		if err := r.Remove(ctx, i.Name); err != nil {
			r.t.Error(err)
		}
	}
}

func (r *rig) dirs() (names []string) {
	entries, err := os.ReadDir(filepath.Join(r.opts.Root, "snapshots"))
	if err != nil {
		r.t.Error(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (r *rig) path(id string, rest ...string) string {
	return filepath.Join(append([]string{r.opts.Root, "snapshots", id}, rest...)...)
}

func mountsBelow(dir string) (targets []string) {
	table, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(table)) {
		if target := strings.Fields(line)[1]; strings.HasPrefix(target, dir+"/") {
			targets = append(targets, target)
		}
	}
	return targets
}

// layerLabels are those of a block layer in repository repo, as the unpacker
// and the client pass them.
func layerLabels(ref string, dgst digest.Digest, repo string) map[string]string {
	return map[string]string{
		snapshots.LabelSnapshotRef:  ref,
		snapshotter.LabelBlobDigest: dgst.String(),
		snapshotter.LabelBlobSize:   "4096",
		snapshotter.LabelImageRef:   repo + ":latest",
	}
}

const testRepo = "registry.test/library/app"

// pull prepares one layer, which must turn out to need no download.
func (r *rig) pull(ref, parent string, dgst digest.Digest) {
	r.t.Helper()
	r.pullLabels(ref, parent, layerLabels(ref, dgst, testRepo))
}

func (r *rig) pullLabels(ref, parent string, labels map[string]string) {
	r.t.Helper()
	mounts, err := r.Prepare(r.t.Context(), "extract-"+ref, parent, snapshots.WithLabels(labels))
	if !errdefs.IsAlreadyExists(err) || mounts != nil {
		r.t.Fatalf("prepare layer %s: got %v, %v; want already exists", ref, mounts, err)
	}
}

// image pulls a new image of one layer, on whose root is the file "name" with
// the image's name.
func (r *rig) image(f *fakeBlock, name string) (ref string) {
	r.t.Helper()
	ref = "sha256:" + name
	r.pull(ref, "", f.addLayer(r.t, name))
	return ref
}

func (r *rig) prepare(key, parent string, labels ...string) []mount.Mount {
	r.t.Helper()
	mounts, err := r.Prepare(r.t.Context(), key, parent, withLabels(labels))
	if err != nil {
		r.t.Fatal(err)
	}
	return mounts
}

func withLabels(pairs []string) snapshots.Opt {
	labels := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		labels[pairs[i]] = pairs[i+1]
	}
	return snapshots.WithLabels(labels)
}

func (r *rig) commit(name, key string, labels ...string) {
	r.t.Helper()
	if err := r.Commit(r.t.Context(), name, key, withLabels(labels)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) remove(key string) {
	r.t.Helper()
	if err := r.Remove(r.t.Context(), key); err != nil {
		r.t.Fatal(err)
	}
}

// in runs fn in a directory on which mounts are mounted.
func (r *rig) in(mounts []mount.Mount, fn func(dir string)) {
	r.t.Helper()
	dir := r.t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		r.t.Fatalf("mount %v: %v", mounts, err)
	}
	defer r.unmount(dir)
	fn(dir)
}

// run has a container run on mounts until unmount.
func (r *rig) run(mounts []mount.Mount) (dir string) {
	r.t.Helper()
	dir = r.t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		r.t.Fatalf("mount %v: %v", mounts, err)
	}
	r.t.Cleanup(func() { r.unmount(dir) }) // before finish
	return dir
}

func (r *rig) unmount(dir string) {
	r.t.Helper()
	if err := mount.UnmountAll(dir, 0); err != nil {
		r.t.Error(err)
	}
}

// mounts returns what Mounts does, which must not fail.
func (r *rig) mounts(key string) []mount.Mount {
	r.t.Helper()
	mounts, err := r.Mounts(r.t.Context(), key)
	if err != nil {
		r.t.Fatal(err)
	}
	return mounts
}

// wantFile expects a file with content text in what mounts show.
func (r *rig) wantFile(mounts []mount.Mount, name, text string) {
	r.t.Helper()
	r.in(mounts, func(dir string) { r.wantRead(filepath.Join(dir, name), text) })
}

func (r *rig) writeFile(mounts []mount.Mount, name, text string) {
	r.t.Helper()
	r.in(mounts, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			r.t.Error(err)
		}
	})
}

// wantMounted expects the devices of the snapshots want to be mounted, and
// nothing else.
func (r *rig) wantMounted(want ...string) {
	r.t.Helper()
	var all []string
	for _, id := range want {
		all = append(all, r.path(id, "block", "mountpoint"))
	}
	got := mountsBelow(r.opts.Root)
	slices.Sort(got)
	if fmt.Sprint(got) != fmt.Sprint(all) {
		r.t.Errorf("mounted: got %v, want %v", got, all)
	}
}

// wantAttached expects the block daemon to have the devices of the snapshots
// want.
func (r *rig) wantAttached(want ...string) {
	r.t.Helper()
	list, err := r.opts.Block.Attachments(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	var got []string
	for _, a := range list {
		got = append(got, a.ID)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		r.t.Errorf("attached: got %v, want %v", got, want)
	}
}

func (r *rig) wantRead(path, text string) {
	r.t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != text {
		r.t.Errorf("file %s: got %q, %v; want %q", path, got, err, text)
	}
}

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }
