// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI is the part of containerd's configuration that says how its CRI plugin
// pulls images.
type CRI string

const (
	// CRILocal has the CRI plugin pull by itself. As the README says.
	CRILocal CRI = `[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlaybd"
disable_snapshot_annotations = false
`

	// CRITransfer has it ask containerd's transfer service. As the README says.
	CRITransfer CRI = `[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlaybd"
[proxy_plugins.overlaybd.exports]
enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "overlaybd"
differ = "walking"
`
)

// criOff lists the plugins of CRI, to disable them: an installed containerd has
// them, and they use directories that all share.
const criOff = `"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", `

// criConfig keeps CRI from those directories. Images need no network plugin.
const criConfig = `[plugins."io.containerd.cri.v1.images".registry]
config_path = %q
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = %q
`

// CRIImages returns a client of what a kubelet asks about images.
func (e *Env) CRIImages() runtime.ImageServiceClient {
	e.t.Helper()
	conn, ok := e.Client.Conn().(grpc.ClientConnInterface)
	if !ok {
		e.t.Fatalf("containerd's client has a connection of type %T", e.Client.Conn())
	}
	return runtime.NewImageServiceClient(conn)
}
