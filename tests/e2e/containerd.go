// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// The containerd namespace that tests use, and the one that CRI does.
const (
	namespace    = "default"
	criNamespace = "k8s.io"
)

const containerdConfig = `version = 3
root = %[1]q
state = %[2]q
disabled_plugins = [%[7]s"io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[grpc]
address = %[3]q
[ttrpc]
address = %[4]q
[debug]
level = "debug"
[plugins."io.containerd.shim.v1.manager"]
socket_dir = %[6]q
[proxy_plugins.overlaybd]
type = "snapshot"
address = %[5]q
`

// differConfig has layers offered to the differ of the snapshotter first. As the
// README says.
const differConfig = `[proxy_plugins.overlaybd-diff]
type = "diff"
address = %q
[plugins."io.containerd.service.v1.diff-service"]
default = ["overlaybd-diff", "walking"]
`

// startContainerd starts a containerd below e.Dir that knows the snapshotter
// "overlaybd", and what opts say beside it, and returns a client in the namespace
// of e.
func startContainerd(t testing.TB, e *Env, opts Options) (*Process, *containerd.Client) {
	t.Helper()
	tools := containerdDir(t, opts.CRI != "")
	runc := need.Command(t, "runc")
	config := filepath.Join(e.Dir, "containerd.toml")
	if err := os.WriteFile(config, []byte(configOf(e, opts)), 0o644); err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + tools + ":" + filepath.Dir(runc) + ":" + os.Getenv("PATH")
	p := startProcess(t, e.Dir, "containerd", []string{path}, filepath.Join(tools, "containerd"), "-c", config)

	var client *containerd.Client
	p.await(t, func() (err error) {
		client, err = containerd.New(e.containerdSocket(), containerd.WithDefaultNamespace(e.namespace))
		if err != nil {
			return err
		}
		if _, err = client.Version(t.Context()); err != nil {
			_ = client.Close()
		}
		return err
	})
	t.Cleanup(func() {
		ctx := namespaces.WithNamespace(context.WithoutCancel(t.Context()), e.namespace)
		if err := empty(ctx, client); err != nil {
			t.Error(err)
		}
		_ = client.Close()
	})
	return p, client
}

// configOf returns the configuration of the containerd of e.
func configOf(e *Env, opts Options) string {
	in := func(name string) string { return filepath.Join(e.Dir, name) }
	socket, proxy := e.containerdSocket(), e.SnapshotterSocket()
	off, cri := criOff, ""
	if opts.CRI != "" {
		off, cri = "", string(opts.CRI)+fmt.Sprintf(criConfig, in("hosts"), in("cni"))
	}
	text := fmt.Sprintf(containerdConfig, in("root"), in("state"), socket, socket+".ttrpc", proxy, in("shim"), off) + cri
	if opts.Differ {
		text += fmt.Sprintf(differConfig, proxy)
	}
	return text
}

// empty removes every container, so that no shim outlives the test, and every
// image, so that the snapshotters let go of theirs.
func empty(ctx context.Context, client *containerd.Client) error {
	if err := removeContainers(ctx, client); err != nil {
		return err
	}
	all, err := client.ImageService().List(ctx)
	if err != nil {
		return err
	}
	for _, i := range all {
		if err := client.ImageService().Delete(ctx, i.Name, images.SynchronousDelete()); err != nil {
			return fmt.Errorf("delete image %s: %w", i.Name, err)
		}
	}
	return nil
}

func removeContainers(ctx context.Context, client *containerd.Client) error {
	all, err := client.Containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range all {
		if task, err := c.Task(ctx, nil); err == nil {
			if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
				return fmt.Errorf("delete task of %s: %w", c.ID(), err)
			}
		}
		if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
			return fmt.Errorf("delete container %s: %w", c.ID(), err)
		}
	}
	return nil
}
