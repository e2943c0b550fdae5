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

// Namespace is the containerd namespace that every test uses.
const Namespace = "default"

const containerdConfig = `version = 3
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
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

// startContainerd starts a containerd below dir that knows the snapshotter
// "overlaybd" behind the socket proxy, and with differ its differ, and returns a
// client in [Namespace].
func startContainerd(t testing.TB, dir, proxy string, differ bool) (*Process, *containerd.Client) {
	t.Helper()
	tools := containerdDir(t)
	runc := need.Command(t, "runc")
	socket := filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "containerd.toml")
	text := fmt.Sprintf(containerdConfig, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, socket+".ttrpc", proxy, filepath.Join(dir, "shim"))
	if differ {
		text += fmt.Sprintf(differConfig, proxy)
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + tools + ":" + filepath.Dir(runc) + ":" + os.Getenv("PATH")
	p := startProcess(t, dir, "containerd", []string{path}, filepath.Join(tools, "containerd"), "-c", config)

	var client *containerd.Client
	p.await(t, func() (err error) {
		client, err = containerd.New(socket, containerd.WithDefaultNamespace(Namespace))
		if err != nil {
			return err
		}
		if _, err = client.Version(t.Context()); err != nil {
			_ = client.Close()
		}
		return err
	})
	t.Cleanup(func() {
		if err := empty(context.WithoutCancel(t.Context()), client); err != nil {
			t.Error(err)
		}
		_ = client.Close()
	})
	return p, client
}

// empty removes every container, so that no shim outlives the test, and every
// image, so that the snapshotters let go of theirs.
func empty(ctx context.Context, client *containerd.Client) error {
	ctx = namespaces.WithNamespace(ctx, Namespace)
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
