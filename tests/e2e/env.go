// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/image-spec/identity"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// An Env is a node: a private containerd with all it needs.
type Env struct {
	Dir         string // short: a socket's path has 107 bytes
	Registry    *Registry
	Snapshotter *Snapshotter // nil unless asked for
	Containerd  *Process
	Client      *containerd.Client

	t         testing.TB
	namespace string       // of containerd's
	runs      atomic.Int64 // of "ctr run"
}

// Options are the choices of an Env.
type Options struct {
	// Overlaybd starts the project's daemons, too.
	Overlaybd bool

	// Config is appended to the daemons' configuration.
	Config string

	// Turbo is appended to the section turbo of their configuration.
	Turbo string

	// Differ has containerd ask the snapshotter's differ before its own.
	Differ bool

	// CRI has containerd serve CRI, and is what its configuration says of how
	// images are pulled. The node uses CRI's namespace then.
	CRI CRI

	// Registry is shared with another Env; a new one if nil.
	Registry *Registry
}

// Start starts a node. The test is skipped where it is not root, or short.
// When it ends, everything stops, and what is left behind fails it.
func Start(t testing.TB, opts Options) *Env {
	t.Helper()
	need.Time(t, "it starts containerd")
	need.Root(t)
	e := &Env{Dir: tempDir(t), Registry: opts.Registry, t: t, namespace: namespace}
	if opts.CRI != "" {
		e.namespace = criNamespace
	}
	if e.Registry == nil {
		e.Registry = StartRegistry(t)
	}
	if opts.Overlaybd {
		e.Snapshotter = startSnapshotter(t, e, opts)
	}
	e.Containerd, e.Client = startContainerd(t, e, opts)
	return e
}

// tempDir is t.TempDir with a short path, for the sockets. What is mounted
// there at the end of the test fails it.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "obd-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unmountBelow(dir), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// SnapshotterSocket returns where containerd looks for the snapshotter.
func (e *Env) SnapshotterSocket() string { return filepath.Join(e.Dir, "s.sock") }

func (e *Env) containerdSocket() string { return filepath.Join(e.Dir, "c.sock") }

// Context returns the test's context in the namespace that the node uses.
func (e *Env) Context() context.Context {
	return namespaces.WithNamespace(e.t.Context(), e.namespace)
}

// Ctr runs the project's ctr against the environment's containerd and returns
// what it wrote to stdout. It fails the test when ctr fails.
func (e *Env) Ctr(args ...string) string {
	e.t.Helper()
	out, err := e.TryCtr(e.t.Context(), args...)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

// TryCtr is Ctr for a command that may fail.
func (e *Env) TryCtr(ctx context.Context, args ...string) (string, error) {
	var stdout bytes.Buffer
	err := e.StreamCtr(ctx, &stdout, args...)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, stdout.String())
	}
	return stdout.String(), err
}

// StreamCtr runs the project's ctr and hands on what it writes to stdout, when
// it does. When ctx ends, ctr is interrupted and given time to clean up.
func (e *Env) StreamCtr(ctx context.Context, stdout io.Writer, args ...string) error {
	if args[0] == "run" {
		args = slices.Insert(slices.Clone(args), 1, e.private()...)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(Bin(e.t), "ctr"), args...)
	cmd.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+e.containerdSocket(),
		"CONTAINERD_NAMESPACE="+e.namespace, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
	if e.Snapshotter != nil {
		cmd.Env = append(cmd.Env, "OVERLAYBD_CONFIG="+e.Snapshotter.Config)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopTimeout
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ctr %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return nil
}

// private returns flags of "ctr run" that keep inside Dir, and in a cgroup that
// goes with its container, what otherwise lands in directories all share.
func (e *Env) private() []string {
	cgroup := fmt.Sprintf("/%s-%d", filepath.Base(e.Dir), e.runs.Add(1))
	return []string{"--fifo-dir", filepath.Join(e.Dir, "fifo"), "--runc-root", filepath.Join(e.Dir, "runc"), "--cgroup", cgroup}
}

// Pull pulls the image onto containerd's own overlayfs snapshotter, or only
// into the content store for every platform it has.
func (e *Env) Pull(ref string) {
	e.Ctr("image", "pull", "--local", "--plain-http", "--snapshotter", "overlayfs", ref)
}

// Fetch fetches every platform of the image into the content store.
func (e *Env) Fetch(ref string) { e.Ctr("content", "fetch", "--plain-http", "--all-platforms", ref) }

// Run runs a command, or the image's own, in a new container and returns what
// it wrote to stdout.
func (e *Env) Run(snapshotter, ref string, command ...string) string {
	e.t.Helper()
	id := fmt.Sprintf("c%d", time.Now().UnixNano())
	return e.Ctr(append([]string{"run", "--rm", "--snapshotter", snapshotter, ref, id}, command...)...)
}

// Mount mounts the root file system of the image's platform of this machine,
// read-only as far as the snapshotter makes it so, until the test ends.
func (e *Env) Mount(snapshotter, ref string) (root string) {
	e.t.Helper()
	ctx := e.Context()
	img, err := e.Client.GetImage(ctx, ref)
	if err != nil {
		e.t.Fatal(err)
	}
	diffIDs, err := img.RootFS(ctx)
	if err != nil {
		e.t.Fatal(err)
	}
	s := e.Client.SnapshotService(snapshotter)
	key := fmt.Sprintf("view-%d", time.Now().UnixNano())
	root = filepath.Join(e.Dir, key)
	keep := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": key}) // or containerd collects it
	mounts, err := s.View(ctx, key, identity.ChainID(diffIDs).String(), keep)
	if err != nil {
		e.t.Fatalf("view %s on %s: %v", ref, snapshotter, err)
	}
	if err := errors.Join(os.Mkdir(root, 0o700), mount.All(mounts, root)); err != nil {
		e.t.Fatalf("mount %s on %s: %v", ref, snapshotter, err)
	}
	e.t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		if err := errors.Join(mount.UnmountAll(root, 0), s.Remove(ctx, key)); err != nil {
			e.t.Error(err)
		}
	})
	return root
}

// unmountBelow unmounts what is mounted below dir, deepest first, and returns
// an error that names it.
func unmountBelow(dir string) error {
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	errs := make([]error, 0, len(left))
	for _, m := range slices.Backward(left) {
		errs = append(errs, fmt.Errorf("left mounted: %s on %s", m.Source, m.Mountpoint), mount.UnmountAll(m.Mountpoint, unmountDetach))
	}
	return errors.Join(errs...)
}

// unmountDetach is MNT_DETACH: the mount's server may be gone.
const unmountDetach = 2
