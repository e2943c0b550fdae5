// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
)

func attachCommand() *cobra.Command {
	var id, config, address string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "attach --id ID --config FILE",
		Short: "Make the device of an image by hand",
		Long: `Make the device of an image by hand, and print its path: a block special file,
or with the exporter fuse a regular file for mount -o loop. FILE is a
config.v1.json: the layers of the image.

The running block daemon makes the device, with the exporter of its
configuration, and serves it until it is detached. Doing so again prints the
same device.`,
		Example: "  overlaybd attach --id 7 --config /images/redis/config.v1.json\n  mount -o ro \"$(overlaybd attach --id 7 --config config.v1.json)\" /mnt",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := filepath.Abs(config)
			if err != nil {
				return err
			}
			var a blockapi.Attachment
			err = callDaemon(cmd.Context(), address, func(ctx context.Context, c *blockapi.Client) (err error) {
				a, err = c.Attach(ctx, id, path)
				return err
			})
			if err != nil {
				return err
			}
			text := a.Path + "\n"
			if asJSON {
				text = toJSON(a)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	deviceFlags(cmd, &id, &address)
	cmd.Flags().StringVar(&config, "config", "", "file that names the layers, config.v1.json")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	mustRequire(cmd, "config")
	return cmd
}

func detachCommand() *cobra.Command {
	var id, address string
	cmd := &cobra.Command{
		Use:     "detach --id ID",
		Short:   "Remove a device",
		Long:    `Remove a device that nobody uses. One that does not exist is no error.`,
		Example: "  overlaybd detach --id 7",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := callDaemon(cmd.Context(), address, func(ctx context.Context, c *blockapi.Client) error {
				return c.Detach(ctx, id)
			})
			if errdefs.IsFailedPrecondition(err) {
				return &adviceError{err: err, advice: "Unmount it, and end what has it open, first."}
			}
			return err
		},
	}
	deviceFlags(cmd, &id, &address)
	return cmd
}

func deviceFlags(cmd *cobra.Command, id, address *string) {
	cmd.Flags().StringVar(id, "id", "", "name of the device, such as the snapshot's id")
	cmd.Flags().StringVar(address, "address", conf.Default().Blockd.Address, "socket of the block daemon")
	mustRequire(cmd, "id")
}

// mustRequire makes a flag of cmd a required one.
func mustRequire(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagRequired(flag); err != nil {
		panic(err) // there is no such flag
	}
}

// callDaemon makes a call of the block daemon at address.
func callDaemon(ctx context.Context, address string, call func(context.Context, *blockapi.Client) error) error {
	c, err := blockapi.Dial(address)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // the answer is there
	err = call(ctx, c)
	if errdefs.IsUnavailable(err) {
		err = fmt.Errorf("ask the block daemon at %s: %w", address, err)
		return &adviceError{err: err, advice: "Is overlaybd-blockd running, and are you root? --address names its socket."}
	}
	return err
}

// attacherName is the name by which the reference calls the program that
// attaches and detaches.
const attacherName = "overlaybd-attacher"

// newAttacher returns the command with the reference's name and flags.
func newAttacher() *cobra.Command {
	root := &cobra.Command{
		Use:           attacherName,
		Short:         "Attach and detach the devices of images",
		Long:          "Attach and detach the devices of images: overlaybd attach and overlaybd detach\nunder the name, and with the flags, of the reference implementation.",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	attach, detach := attachCommand(), detachCommand()
	for _, cmd := range []*cobra.Command{attach, detach} {
		cmd.Example = ""
		cmd.Flags().BoolP("verbose", "v", false, "without effect: the block daemon has the log")
	}
	attach.Flags().Bool("with-devid", false, "without effect: the block daemon knows the device by its id")
	root.AddCommand(attach, detach)
	return root
}
