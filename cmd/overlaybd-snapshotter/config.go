// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/conf"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print or migrate configuration files",
	}
	cmd.AddCommand(migrateCommand(), defaultCommand())
	return cmd
}

func migrateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate OLD.json",
		Short: "Print the TOML that means what the reference's config.json means",
		Long: `Print the TOML that means what a config.json of the reference implementation
means. Keys without a counterpart are named on standard error.`,
		Example: "  overlaybd-snapshotter config migrate config.json > config.toml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, warnings, err := conf.Load(args[0])
			if err != nil {
				return err
			}
			for _, w := range warnings {
				cmd.PrintErrln("warning:", w)
			}
			return cfg.WriteTOML(cmd.OutOrStdout())
		},
	}
}

func defaultCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "default",
		Short: "Print the default configuration, every key explained",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return conf.Default().WriteTOML(cmd.OutOrStdout())
		},
	}
}
