// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/referrer"
)

// devicesTimeout bounds the one question to the block daemon.
const devicesTimeout = 10 * time.Second

func devicesCommand() *cobra.Command {
	var address, root string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "devices",
		Short: "List the devices that the block daemon serves",
		Long: `List the devices that the block daemon serves: what they show, how they fare,
how many bytes came over the network and from the cache, and how much of the
layers is on the node for good. Below them are the images that might have been
read on demand and were pulled as they are, with the reason.`,
		Example: "  overlaybd devices\n  overlaybd devices --json | jq '.[] | select(.state != \"serving\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := listDevices(cmd.Context(), address)
			if err != nil {
				return err
			}
			if asJSON {
				_, err = io.WriteString(cmd.OutOrStdout(), toJSON(list))
				return err
			}
			if err := printDevices(cmd.OutOrStdout(), list); err != nil {
				return err
			}
			whole, err := referrer.ReadJournal(filepath.Join(root, referrer.JournalName))
			if err != nil || len(whole) == 0 {
				return err
			}
			return printWhole(cmd.OutOrStdout(), whole)
		},
	}
	cmd.Flags().StringVar(&address, "address", conf.Default().Blockd.Address, "socket of the block daemon")
	cmd.Flags().StringVar(&root, "root", conf.Default().Root, "state directory of the snapshotter")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// listDevices asks the daemon at address. The list is never nil.
func listDevices(ctx context.Context, address string) ([]blockapi.Attachment, error) {
	ctx, cancel := context.WithTimeout(ctx, devicesTimeout)
	defer cancel()
	list := []blockapi.Attachment{}
	err := callDaemon(ctx, address, func(ctx context.Context, c *blockapi.Client) error {
		all, err := c.Attachments(ctx)
		list = append(list, all...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return list, nil
}

func printDevices(w io.Writer, list []blockapi.Attachment) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tSTATE\tEXPORTER\tSIZE\tFETCHED\tCACHED\tLOCAL\tPATH\tIMAGE")
	for _, a := range list {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.ID, a.State, a.Exporter, size(a.Size),
			size(a.FetchedBytes), size(a.CachedBytes), local(a), a.Path, printable(a.Image))
		if a.Error != "" {
			fmt.Fprintf(tw, "\t%s\n", printable(a.Error))
		}
	}
	return tw.Flush()
}

// printWhole lists the images that were pulled as they are, the last first.
func printWhole(w io.Writer, list []referrer.Verdict) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "\nPULLED\tNOT LAZY\tBECAUSE")
	for _, v := range slices.Backward(list) {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", v.Time.Local().Format(time.DateTime), printable(v.Image), printable(v.Reason))
	}
	return tw.Flush()
}

// local says how much of a device's layers is on the node.
func local(a blockapi.Attachment) string {
	switch a.LayerBytes {
	case 0:
		return "-" // none was remote
	case a.LocalBytes:
		return "all"
	}
	return size(a.LocalBytes) + " of " + size(a.LayerBytes)
}
