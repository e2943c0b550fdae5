// SPDX-License-Identifier: Apache-2.0

// Package blockapi is the boundary between the two processes of a node: the
// snapshotter, which knows containers and mounts, asks the block daemon, which
// knows networks, formats and devices, for block devices.
//
// [Service] is that boundary as a Go interface. [Server] puts an
// implementation on a gRPC server, [Client] is an implementation that calls
// one. Errors cross with their errdefs class.
package blockapi

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// A Service gives out block devices for volume specs. Every call is idempotent
// in id, so a caller that crashed simply repeats it.
type Service interface {
	// Attach returns the device serving the spec file specPath under id,
	// creating it if need be. The files of a writable layer that does not
	// exist yet are created first. An id attached with another spec fails with
	// errdefs.ErrAlreadyExists.
	Attach(ctx context.Context, id, specPath string) (Attachment, error)

	// Detach removes the device. A missing one is no error; a busy one is
	// errdefs.ErrFailedPrecondition.
	Detach(ctx context.Context, id string) error

	// Attachments lists the devices, ordered by id.
	Attachments(ctx context.Context) ([]Attachment, error)

	// Seal freezes the writable layer of a detached spec into a read-only
	// layer file at dst, and deletes the writable layer's files. Where dst
	// exists and they do not, it has been done before and is no error. An
	// attached spec fails with errdefs.ErrFailedPrecondition.
	Seal(ctx context.Context, specPath, dst string) error

	// Expect says that layers of a repository will be attached soon: which
	// ones, or, with no blobs, that it will turn out. The daemon begins to do
	// what an Attach of them would wait for. It answers at once and promises
	// nothing; the error is about the question.
	Expect(ctx context.Context, repository string, blobs ...Blob) error
}

// A Blob is a layer in a repository, which is named by the URL of its blobs:
// https://registry/v2/redis/blobs.
type Blob struct {
	Digest digest.Digest
	Size   int64 // bytes

	// Target is the digest of the layer, in the same repository, that has the
	// content of this one's files, if that is a TurboOCI layer: all of the
	// blob will be read, and then parts of the target.
	Target digest.Digest

	// SpecPath is the spec of the image that ends with the layer, if there is
	// one yet: a TurboOCI layer is unpacked to where that says.
	SpecPath string
}

// An Attachment is a live block device and how it fares.
type Attachment struct {
	ID       string `json:"id"`
	SpecPath string `json:"spec"`

	// Exporter is what makes the device: tcmu, ublk, fuse.
	Exporter string `json:"exporter"`

	// Path is the block special file, or, where File is set, a regular file
	// standing in for one: to be put on a loop device, or mounted as it is by
	// a file system that can. It is empty while the device is suspended.
	Path string `json:"path"`
	File bool   `json:"file"`

	Writable bool   `json:"writable"`
	Size     int64  `json:"size"`  // bytes
	Image    string `json:"image"` // where the layers come from

	State State  `json:"state"`
	Error string `json:"error,omitempty"` // why the state is not Serving

	// FetchedBytes came over the network since the device was attached;
	// CachedBytes were answered by the block cache.
	FetchedBytes int64 `json:"fetched_bytes"`
	CachedBytes  int64 `json:"cached_bytes"`

	// LayerBytes is how much the layers have that were remote once, and
	// LocalBytes how much of that was downloaded. Where both are the same, the
	// device needs no network any more.
	LayerBytes int64 `json:"layer_bytes"`
	LocalBytes int64 `json:"local_bytes"`

	// Near says that reads hardly need the network: nearly all that the layers
	// have is on the node, downloaded or in the block cache.
	Near bool `json:"near"`
}

// State says how a device fares.
type State string

// The states of a device.
const (
	Serving State = "serving" // reads are answered
	Waiting State = "waiting" // some read waits for its source to come back
	Failed  State = "failed"  // the device stopped; detach it and attach again

	// Suspended is a device of an earlier process that is not served yet: it
	// exists and may be mounted, and whoever uses it waits. The daemon goes on
	// trying, and so does Attach.
	Suspended State = "suspended"
)
