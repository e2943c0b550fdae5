// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/ctr/commands"
	ctrcontent "github.com/containerd/containerd/v2/cmd/ctr/commands/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/httpdbg"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
)

func rpullCommand() *cli.Command {
	return &cli.Command{
		Name:      "rpull",
		Usage:     "Pull an image without its layers",
		ArgsUsage: "[flags] <ref>",
		Description: `Pull a block image: its manifest and config come now, and the metadata of
TurboOCI layers; the blocks of its layers when a container reads them. Layers of
other images are pulled as usual, unless the snapshotter finds a block image that
is attached to it (auto in the configuration's section turbo).`,
		Flags: slices.Concat(commands.RegistryFlags, []cli.Flag{
			commands.LabelFlag,
			snapshotterFlag(),
			configFlag(),
			&cli.StringFlag{Name: "platform", Usage: "Pull the image for this platform"},
			&cli.BoolFlag{Name: "download-blobs", Usage: "Pull the layers too, rather than read them on demand"},
			&cli.BoolFlag{Name: "convert2turbo-oci", Usage: "Make a block image of the layers that are pulled, here on the node"},
		}),
		DisableSliceFlagSeparator: true,
		Action:                    rpull,
	}
}

func rpull(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 1 {
		return errors.New("want the reference of one image")
	}
	resolver, err := newResolver(ctx, cmd)
	if err != nil {
		return err
	}
	herald, err := newHerald(ctx, cmd, cmd.Args().First())
	if err != nil {
		return err
	}
	defer herald.close()
	herald.expect()
	return withClient(ctx, cmd, func(ctx context.Context, client *containerd.Client) error {
		tell := snapshotters.AppendInfoHandlerWrapper(cmd.Args().First())
		wrap := func(next images.Handler) images.Handler { return herald.watch(tell(next)) }
		return pull(ctx, cmd, client, containerd.WithResolver(resolver), containerd.WithImageHandlerWrapper(wrap))
	})
}

func pull(ctx context.Context, cmd *cli.Command, client *containerd.Client, opts ...containerd.RemoteOpt) error {
	ref := cmd.Args().First()
	if cmd.Bool("http-trace") {
		ctx = httpdbg.WithClientTrace(ctx)
	}

	start := time.Now()
	show := newDisplay(ctx, cmd.Root().Writer, client, ref, cmd.Bool("debug"))
	opts = append(opts,
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(cmd.String("snapshotter"), snapshots.WithLabels(pullLabels(cmd))),
		containerd.WithPullLabels(commands.LabelArgs(cmd.StringSlice("label"))),
		containerd.WithImageHandler(show),
	)
	if p := cmd.String("platform"); p != "" {
		opts = append(opts, containerd.WithPlatform(p))
	}
	img, err := client.Pull(ctx, ref, opts...)
	show.stop()
	if err != nil {
		return err
	}
	return report(ctx, cmd.Root().Writer, img, time.Since(start))
}

func pullLabels(cmd *cli.Command) map[string]string {
	labels := map[string]string{snapshotter.LabelImageRef: cmd.Args().First()}
	if cmd.Bool("download-blobs") {
		labels[snapshotter.LabelDownload] = "download"
	}
	if cmd.Bool("convert2turbo-oci") {
		labels[snapshotter.LabelConvert] = "yes"
	}
	return labels
}

// report says how much of the image stayed in the registry.
func report(ctx context.Context, w io.Writer, img containerd.Image, took time.Duration) error {
	manifest, err := images.Manifest(ctx, img.ContentStore(), img.Target(), img.Platform())
	if err != nil {
		return fmt.Errorf("read manifest of %s: %w", img.Name(), err)
	}
	remote := 0
	for _, l := range manifest.Layers {
		_, err := img.ContentStore().Info(ctx, contentOf(l))
		if errdefs.IsNotFound(err) {
			remote++
		} else if err != nil {
			return fmt.Errorf("look for layer %s: %w", l.Digest, err)
		}
	}
	_, err = fmt.Fprintf(w, "%s %s\n%d of %d layers left in the registry, %v\n", img.Name(), img.Target().Digest,
		remote, len(manifest.Layers), took.Round(time.Millisecond))
	return err
}

// contentOf returns the digest of what has the content of layer l, which of a
// TurboOCI layer is another one.
func contentOf(l ocispec.Descriptor) digest.Digest {
	if target := snapshotter.TargetOf(l.Annotations); target != "" {
		return digest.Digest(target)
	}
	return l.Digest
}

// A display shows the progress of a pull: bars on a terminal, else a line per
// object. It is the handler that is told of each.
type display struct {
	w    io.Writer
	mu   sync.Mutex // guards w
	jobs *ctrcontent.Jobs
	stop func() // waits for the last of it
}

// newDisplay starts showing. Where there is debug output, bars would hide it.
func newDisplay(ctx context.Context, w io.Writer, client *containerd.Client, ref string, debug bool) *display {
	d := &display{w: w, jobs: ctrcontent.NewJobs(ref), stop: func() {}}
	f, ok := w.(interface{ Fd() uintptr })
	if debug || !ok || !term.IsTerminal(int(f.Fd())) {
		return d
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctrcontent.ShowProgress(ctx, d.jobs, client.ContentStore(), w)
	}()
	d.w = io.Discard
	d.stop = func() {
		cancel()
		<-done
	}
	return d
}

var _ images.Handler = (*display)(nil)

// Handle notes that desc is fetched.
func (d *display) Handle(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	d.jobs.Add(desc)
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := fmt.Fprintf(d.w, "fetch %s %s %d bytes\n", kind(desc.MediaType), desc.Digest, desc.Size)
	return nil, err
}

func kind(mediaType string) string {
	switch {
	case images.IsIndexType(mediaType):
		return "index"
	case images.IsManifestType(mediaType):
		return "manifest"
	case images.IsConfigType(mediaType):
		return "config"
	case images.IsLayerType(mediaType):
		return "layer"
	}
	return mediaType
}
