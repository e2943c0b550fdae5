// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/urfave/cli/v3"

	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

func obdconvCommand() *cli.Command {
	return &cli.Command{
		Name:      "obdconv",
		Usage:     "Convert an image into a block image",
		ArgsUsage: "[flags] <source ref> <target ref>",
		Description: `Convert an image of the content store into a block image under another name.
Each layer is written to a disk of the snapshotter's, so ctr must run as root
on containerd's machine. Of an image for several platforms those are converted
whose layers are there ("ctr content fetch --all-platforms"), or those that
--platform names.`,
		Flags: []cli.Flag{
			snapshotterFlag(),
			&cli.StringSliceFlag{Name: "platform", Usage: "Convert the image for this platform"},
			&cli.StringFlag{Name: "fstype", Usage: "File system in the layers: type[;mount options[;mkfs options]]", Value: "ext4"},
			&cli.IntFlag{Name: "vsize", Usage: "Capacity of the image's disk in GiB", Value: 64},
			&cli.StringFlag{Name: "algorithm", Usage: "Compression, lz4 or zstd", Value: "lz4"},
			&cli.StringFlag{Name: "level", Usage: "Normal, or best: 6 % fewer bytes for several times the processor time", Value: "normal"},
			&cli.IntFlag{Name: "bs", Usage: "Compressed block in KiB: 4, 8, 16, 32 or 64", Value: 4},
		},
		DisableSliceFlagSeparator: true,
		Action:                    obdconv,
	}
}

func obdconv(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 2 {
		return errors.New("want a source and a target reference")
	}
	job, err := newJob(cmd)
	if err != nil {
		return err
	}
	return withClient(ctx, cmd, func(ctx context.Context, client *containerd.Client) error {
		job.content, job.snapshots = client.ContentStore(), client.SnapshotService(cmd.String("snapshotter"))
		img, err := job.run(ctx, client.ImageService(), cmd.Args().Get(0), cmd.Args().Get(1))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.Root().Writer, img.Target.Digest)
		return err
	})
}

// newJob reads the flags.
func newJob(cmd *cli.Command) (*job, error) {
	j := &job{fsType: cmd.String("fstype"), out: cmd.Root().Writer}
	vsize, kib := cmd.Int("vsize"), cmd.Int("bs")
	if vsize < 1 {
		return nil, fmt.Errorf("--vsize %d: want at least 1 GiB", vsize)
	}
	j.vsizeGB = strconv.Itoa(vsize)
	switch kib {
	case 4, 8, 16, 32, 64:
	default:
		return nil, fmt.Errorf("--bs %d: want 4, 8, 16, 32 or 64", kib)
	}
	algorithm, err := zfile.ParseAlgorithm(cmd.String("algorithm"))
	if err != nil {
		return nil, fmt.Errorf("--algorithm: %w", err)
	}
	level, err := zfile.ParseLevel(cmd.String("level"))
	if err != nil {
		return nil, fmt.Errorf("--level: %w", err)
	}
	j.compression = zfile.Options{Algorithm: algorithm, Level: level, BlockSize: kib << 10}
	if all := cmd.StringSlice("platform"); len(all) > 0 {
		p, err := platforms.ParseAll(all)
		if err != nil {
			return nil, fmt.Errorf("--platform: %w", err)
		}
		j.platform = platforms.Any(p...)
	}
	return j, nil
}

// run converts the image src and names the result dst.
func (j *job) run(ctx context.Context, store images.Store, src, dst string) (images.Image, error) {
	img, err := store.Get(ctx, src)
	if err != nil {
		return img, fmt.Errorf("look up image %s: %w", src, err)
	}
	documents := convert.ContentStore(j.content)
	c := convert.Converter{
		Source:   documents,
		Builder:  j,
		Outputs:  []convert.Output{{Target: documents, FSType: j.fsType}},
		Platform: j.platform,
	}
	out, err := c.Convert(ctx, img.Target)
	if err != nil {
		return img, fmt.Errorf("convert image %s: %w", src, err)
	}
	img.Target, img.Name = out[0], dst
	made, err := store.Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		made, err = store.Update(ctx, img)
	}
	if err != nil {
		return img, fmt.Errorf("name image %s: %w", dst, err)
	}
	return made, nil
}

// progress prints a line about a layer.
func (j *job) progress(l convert.Layer, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	line := fmt.Sprintf("%s layer %d/%d %s: ", platforms.Format(l.Platform), l.Index+1, l.Count, l.Source.Digest)
	_, _ = io.WriteString(j.out, line+fmt.Sprintf(format, args...)+"\n") // what could one do about it
}
