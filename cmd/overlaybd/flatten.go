// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
	"github.com/overlaybd-go/overlaybd/image"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// copyChunk is how many bytes flatten reads at once, and the length of zeros
// from which on it leaves a hole.
const (
	copyChunk = 4 << 20
	holeChunk = 64 << 10
)

func flattenCommand() *cobra.Command {
	var dockerConfig, hostsDir string
	cmd := &cobra.Command{
		Use:   "flatten CONFIG OUT",
		Short: "Write the disk that a config.v1.json describes as a sparse file",
		Long: `Write the disk that a config.v1.json describes, all layers merged, as a sparse
file that can be mounted or compared. Layers that are not on this machine are
fetched. OUT must not exist.`,
		Example: `  overlaybd flatten /var/lib/…/snapshots/7/block/config.v1.json disk.img
  mount -o loop,ro disk.img /mnt`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			remote := registry.New(registry.Options{HostsDir: hostsDir, Credentials: auth.Docker(dockerConfig)})
			blobs := retry.New(remote, retry.Options{})
			open := fetcher.Schemes{"https": blobs, "http": blobs, "file": file.Opener{}}
			return errors.Join(flatten(cmd.Context(), args[0], args[1], open), remote.Close())
		},
	}
	cmd.Flags().StringVar(&dockerConfig, "docker-config", "/root/.docker/config.json", "credentials for registries")
	cmd.Flags().StringVar(&hostsDir, "hosts-dir", "/etc/containerd/certs.d", "registry configuration, as containerd's config_path")
	return cmd
}

// flatten writes the volume of the spec at config to a new file out, of which
// nothing is left when it fails.
func flatten(ctx context.Context, config, out string, blobs fetcher.Opener) (err error) {
	v, err := spec.Load(config)
	if err != nil {
		return err
	}
	if v.Writable() {
		return fmt.Errorf("flatten %s: it has a writable layer, which may be in use; seal it first", config)
	}
	vol, err := image.Open(ctx, v, blobs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vol.Close()) }()
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = copySparse(ctx, f, vol)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("flatten %s: %w", config, err), os.Remove(out))
	}
	return nil
}

// copySparse writes vol to the empty file f, leaving holes for zeros.
func copySparse(ctx context.Context, f *os.File, vol backend.Volume) error {
	if err := f.Truncate(vol.Size()); err != nil {
		return err
	}
	buf := make([]byte, copyChunk)
	for off := int64(0); off < vol.Size(); off += copyChunk {
		p := buf[:min(copyChunk, vol.Size()-off)]
		if _, err := vol.ReadAt(ctx, p, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := writeHoley(f, p, off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// zeros is what a hole reads as.
var zeros [holeChunk]byte

func writeHoley(f *os.File, p []byte, off int64) error {
	for len(p) > 0 {
		part := p[:min(holeChunk, len(p))]
		if !bytes.Equal(part, zeros[:len(part)]) {
			if _, err := f.WriteAt(part, off); err != nil {
				return err
			}
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}
