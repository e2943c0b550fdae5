// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// gate skips a test that cannot start a node with the project's daemons.
func gate(t *testing.T) {
	t.Helper()
	need.Time(t, "it starts containerd")
	need.Root(t)
	need.FUSE(t)
	need.Loop(t)
	need.Command(t, "docker-registry")
	need.Command(t, "runc")
}

// start starts a node with the project's daemons.
func start(t *testing.T, registry *e2e.Registry) *e2e.Env {
	t.Helper()
	return e2e.Start(t, e2e.Options{Overlaybd: true, Registry: registry})
}

// converted pushes img and its conversion to a registry. The node that does it
// is gone when it returns, with all that it has cached.
func converted(t *testing.T, registry *e2e.Registry, img e2e.Image, flags ...string) (oci, block string) {
	t.Helper()
	t.Run("convert", func(t *testing.T) {
		env := start(t, registry)
		oci = registry.Push(t, img, "image", "oci")
		block = registry.Host + "/image:block"
		env.Fetch(oci)
		before := state(t, env, "overlaybd")
		env.Ctr(append(append([]string{"obdconv"}, flags...), oci, block)...)
		checkConverted(t, env, before)
		env.Ctr("images", "push", "--local", "--plain-http", block)
	})
	if block == "" || t.Failed() {
		t.FailNow()
	}
	return oci, block
}

// checkConverted asserts that a conversion has left nothing but an image.
func checkConverted(t *testing.T, env *e2e.Env, before map[string][]string) {
	t.Helper()
	after := state(t, env, "overlaybd")
	for _, what := range []string{"snapshots", "leases", "uploads"} {
		if diff := cmp.Diff(before[what], after[what]); diff != "" {
			t.Errorf("the conversion left %s\n%s", what, diff)
		}
	}
	if left := snapshotDirs(t, env); left != 0 {
		t.Errorf("the conversion left %d snapshot directories", left)
	}
}

func snapshotDirs(t *testing.T, env *e2e.Env) int {
	t.Helper()
	dirs, err := os.ReadDir(filepath.Join(env.Dir, "snapshotter", "snapshots"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return len(dirs)
}

func TestConvertAndRun(t *testing.T) {
	for _, flags := range [][]string{nil, {"--algorithm", "zstd", "--bs", "16"}} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			gate(t)
			registry := e2e.StartRegistry(t)
			oci, block := converted(t, registry, e2e.Synthetic(t), flags...)
			env := start(t, registry)
			if out := env.Ctr("rpull", "--plain-http", block); !strings.Contains(out, "7 of 7 layers left in the registry") {
				t.Errorf("rpull said\n%s", out)
			}
			if got := env.Run("overlaybd", block); got != "hello\n" {
				t.Errorf("the container said %q", got)
			}
			sameTrees(t, env, oci, block)
		})
	}
}

// TestConvertorAndRun: what the convertor makes without root or mounts runs as
// what is made by mounting, and is the same every time.
func TestConvertorAndRun(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	oci := registry.Push(t, e2e.Synthetic(t), "image", "oci")
	convertor := func(tag string, flags ...string) (ref string) {
		args := append([]string{"-r", registry.Host + "/image", "-i", "oci", "-o", tag, "--plain", "--dir", t.TempDir()}, flags...)
		cmd := exec.CommandContext(t.Context(), filepath.Join(e2e.Bin(t), "convertor"), args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
		return registry.Host + "/image:" + tag
	}
	block := convertor("block", "--jobs", "1")
	env := start(t, registry)
	env.Ctr("rpull", "--plain-http", block)
	if got := env.Run("overlaybd", block); got != "hello\n" {
		t.Errorf("the container said %q", got)
	}
	sameTrees(t, env, oci, block)

	again := convertor("again", "--jobs", "8")
	env.Ctr("rpull", "--plain-http", again)
	if a, b := target(t, env, block), target(t, env, again); a != b {
		t.Errorf("converted once it is %s, with more workers %s", a, b)
	}
}

// target returns the digest that ref leads to.
func target(t *testing.T, env *e2e.Env, ref string) digest.Digest {
	t.Helper()
	img, err := env.Client.ImageService().Get(env.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return img.Target.Digest
}

// sameTrees asserts that the block image shows what containerd's own
// snapshotter makes of the source.
func sameTrees(t *testing.T, env *e2e.Env, oci, block string) {
	t.Helper()
	env.Pull(oci)
	want, err := e2e.ReadTree(env.Mount("overlayfs", oci))
	if err != nil {
		t.Fatal(err)
	}
	got, err := e2e.ReadTree(env.Mount("overlaybd", block))
	if err != nil {
		t.Fatal(err)
	}
	forgetUnpacking(want, got)
	if diff := want.Diff(got); len(diff) != 0 {
		t.Errorf("%d of %d files differ from the source, as\n%s", len(diff), len(want), strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

// begun is when the test process started: what changed later was not in an
// image, but unpacked.
var begun = time.Now().UTC().Format("2006-01-02T15:04:05")

// emptied are the directories that a layer of the Debian image makes opaque
// without an entry of their own: a disk has them changed by that, while the
// oracle shows the time in the layer below.
var emptied = []string{"usr/share/locale", "usr/share/man"}

// forgetUnpacking forgets when directories changed whose time no layer says:
// the root, parents without an entry, and those that a whiteout changed. In
// want they have the time of unpacking.
func forgetUnpacking(want, got e2e.Tree) {
	for path, w := range want {
		g, ok := got[path]
		if ok && (path == "." || w.Mode.IsDir() && w.MTime > begun || slices.Contains(emptied, path)) {
			w.MTime, g.MTime = "", ""
			want[path], got[path] = w, g
		}
	}
}

// TestDebianOnDemand: Python says hello long before its image is here.
func TestDebianOnDemand(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	oci, block := converted(t, registry, e2e.Debian(t))
	env := start(t, registry)
	registry.Reset()
	env.Ctr("rpull", "--plain-http", block)
	if got := env.Run("overlaybd", block); !strings.HasPrefix(got, "hello from Linux") {
		t.Errorf("the container said %q", got)
	}
	served, requests := registry.Served()
	img, err := env.Client.ImageService().Get(env.Context(), block)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := images.Manifest(env.Context(), env.Client.ContentStore(), img.Target, platforms.Default())
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, l := range manifest.Layers {
		size += l.Size
	}
	t.Logf("%d of %d bytes in %d requests", served, size, requests)
	if served > size/3 {
		t.Errorf("%d of %d bytes were fetched before the first output, want less than a third", served, size)
	}
	sameTrees(t, env, oci, block)
}

func TestSnapshotterKilled(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	_, block := converted(t, registry, e2e.Synthetic(t))
	env := start(t, registry)
	env.Ctr("rpull", "--plain-http", block)
	env.Ctr("run", "--detach", "--snapshotter", "overlaybd", block, "victim", "/probe", "wait")
	sums := func() string {
		return env.Ctr("tasks", "exec", "--exec-id", fmt.Sprintf("e%d", time.Now().UnixNano()), "victim", "/probe", "sum", "/odd/noise", "/tree/grows")
	}
	before := env.Run("overlaybd", block, "/probe", "sum", "/odd/noise", "/tree/grows")
	env.Snapshotter.Kill()
	if diff := cmp.Diff(before, sums()); diff != "" {
		t.Error(diff)
	}
	env.Snapshotter.Restart()
	if diff := cmp.Diff(before, sums()); diff != "" {
		t.Error(diff)
	}
	env.AwaitSnapshotter()
	if got := env.Run("overlaybd", block); got != "hello\n" {
		t.Errorf("after the restart a container said %q", got)
	}
}

// TestSnapshotterStopped: a container that runs does not notice; once none does,
// stopping leaves nothing, not even the block daemon that an earlier snapshotter
// started.
func TestSnapshotterStopped(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	_, block := converted(t, registry, e2e.Synthetic(t))
	env := start(t, registry)
	env.Ctr("rpull", "--plain-http", block)
	env.Ctr("run", "--detach", "--snapshotter", "overlaybd", block, "victim", "/probe", "wait")
	env.Snapshotter.Stop()
	if !env.Snapshotter.BlockdAnswers() {
		t.Error("the block daemon has left a running container")
	}
	sum := env.Ctr("tasks", "exec", "--exec-id", "sum", "victim", "/probe", "sum", "/odd/noise", "/tree/grows")
	env.Snapshotter.Restart()
	env.AwaitSnapshotter()
	if diff := cmp.Diff(env.Run("overlaybd", block, "/probe", "sum", "/odd/noise", "/tree/grows"), sum); diff != "" {
		t.Error(diff)
	}

	env.Ctr("tasks", "delete", "--force", "victim")
	env.Snapshotter.Stop()
	if env.Snapshotter.BlockdAnswers() {
		t.Error("the block daemon still runs")
	}
	if n := mountsOf(t, filepath.Join(env.Dir, "snapshotter")) + mountsOf(t, filepath.Join(env.Dir, "devices")); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
	env.Snapshotter.Restart()
	env.AwaitSnapshotter()
	if got := env.Run("overlaybd", block); got != "hello\n" {
		t.Errorf("afterwards a container said %q", got)
	}
}

func mountsOf(t *testing.T, dir string) int {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(table), dir+"/")
}

// TestCycles: containers come and go and leave nothing.
func TestCycles(t *testing.T) {
	const cycles = 100
	gate(t)
	registry := e2e.StartRegistry(t)
	_, block := converted(t, registry, e2e.Synthetic(t))
	env := start(t, registry)
	env.Ctr("rpull", "--plain-http", block)
	cycle := func() {
		if got := env.Run("overlaybd", block); got != "hello\n" {
			t.Fatalf("the container said %q", got)
		}
	}
	for range 3 { // whatever is made once
		cycle()
	}
	before := residue(t, env)
	for range cycles {
		cycle()
	}
	for _, l := range settled(t, env, before) {
		t.Errorf("%d containers left %s", cycles, l)
	}
}

// settled returns what there is more of than before. containerd collects
// snapshots, and the daemons end goroutines, shortly after a container is gone.
func settled(t *testing.T, env *e2e.Env, before map[string]int) (left []string) {
	t.Helper()
	timeout := time.After(time.Minute)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if left = grown(before, residue(t, env)); len(left) == 0 {
			return nil
		}
		select {
		case <-timeout:
			return left
		case <-tick.C:
		}
	}
}

// churn is by how many file descriptors and goroutines a daemon may differ
// from one moment to the next: connections come and go. What each container
// leaves is far more after all of them.
const churn = 10

// grown says what there is more of after than before.
func grown(before, after map[string]int) (left []string) {
	for what, n := range after {
		most := before[what]
		if strings.HasSuffix(what, "fds") || strings.HasSuffix(what, "goroutines") {
			most += churn
		}
		if n > most {
			left = append(left, fmt.Sprintf("%d %s, from %d", n, what, before[what]))
		}
	}
	return left
}

var goroutineTotal = regexp.MustCompile(`total (\d+)`)

// residue counts what a container could leave behind.
func residue(t *testing.T, env *e2e.Env) map[string]int {
	t.Helper()
	r := map[string]int{
		"snapshots":   len(snapshotsOf(t, env, "overlaybd")),
		"directories": snapshotDirs(t, env),
	}
	r["mounts"] = mountsOf(t, env.Dir)
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range loops {
		if file, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(file), env.Dir) {
			n++
		}
	}
	r["loop devices"] = n
	snapshotter, blockd := env.Snapshotter.PIDs()
	for daemon, pid := range map[string]int{"sm": snapshotter, "bm": blockd} {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		r[daemon+" fds"] = len(fds)
		r[daemon+" goroutines"] = goroutines(t, env, daemon)
	}
	return r
}

func goroutines(t *testing.T, env *e2e.Env, daemon string) int {
	t.Helper()
	resp, err := env.Snapshotter.Get(daemon, "debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := goroutineTotal.FindSubmatch(text)
	if m == nil {
		t.Fatalf("no number of goroutines in %s: %.200s", resp.Status, text)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestConvertAtOnce: two conversions of one image do not disturb each other.
func TestConvertAtOnce(t *testing.T) {
	gate(t)
	env := start(t, nil)
	oci := env.Registry.Push(t, e2e.Synthetic(t), "image", "oci")
	env.Fetch(oci)
	before := state(t, env, "overlaybd")
	var both errgroup.Group
	names := []string{env.Registry.Host + "/image:one", env.Registry.Host + "/image:two"}
	for _, name := range names {
		both.Go(func() error {
			_, err := env.TryCtr(t.Context(), "obdconv", oci, name)
			return err
		})
	}
	if err := both.Wait(); err != nil {
		t.Fatal(err)
	}
	checkConverted(t, env, before)
	for _, name := range names {
		env.Ctr("images", "push", "--local", "--plain-http", name)
		env.Ctr("rpull", "--plain-http", name)
		sameTrees(t, env, oci, name)
	}
}

// TestConvertInterrupted: a conversion that is told to stop leaves nothing.
func TestConvertInterrupted(t *testing.T) {
	gate(t)
	env := start(t, nil)
	oci := env.Registry.Push(t, e2e.Synthetic(t), "image", "oci")
	env.Fetch(oci)
	before := state(t, env, "overlaybd")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	done := make(chan error, 1)
	go func() {
		_, err := env.TryCtr(ctx, "obdconv", oci, oci+"-block")
		done <- err
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(snapshotsOf(t, env, "overlaybd")) < 2 { // the first layer is applied
		select {
		case err := <-done:
			t.Fatalf("it was over before it could be interrupted: %v", err)
		case <-tick.C:
		}
	}
	interrupt()
	if err := <-done; err == nil {
		t.Error("it succeeded")
	}
	checkConverted(t, env, before)
	if diff := cmp.Diff(before, state(t, env, "overlaybd")); diff != "" {
		t.Error(diff)
	}
}

func TestConvertPlatforms(t *testing.T) {
	gate(t)
	registry := e2e.StartRegistry(t)
	other := e2e.Platform
	other.Architecture = map[string]string{"amd64": "arm64", "arm64": "amd64"}[other.Architecture]
	both, err := e2e.Merge(t.TempDir(), e2e.Synthetic(t), e2e.SyntheticFor(t, other))
	if err != nil {
		t.Fatal(err)
	}
	_, block := converted(t, registry, both)
	env := start(t, registry)
	env.Ctr("rpull", "--plain-http", "--platform", platforms.Format(other), block)
	got, err := env.Client.ImageService().Get(env.Context(), block)
	if err != nil {
		t.Fatal(err)
	}
	all, err := images.Platforms(env.Context(), env.Client.ContentStore(), got.Target)
	if err != nil || len(all) == 0 {
		t.Errorf("platforms %v, %v", all, err)
	}
	env.Ctr("rpull", "--plain-http", block)
	if out := env.Run("overlaybd", block); out != "hello\n" {
		t.Errorf("the container said %q", out)
	}
}
