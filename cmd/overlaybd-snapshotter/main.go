// SPDX-License-Identifier: Apache-2.0

// Command overlaybd-snapshotter is containerd's proxy snapshotter for images
// made of block layers. It starts the block daemon beside it when none
// answers.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/conf"
)

var version = "devel" // set by the linker

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "overlaybd-snapshotter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	return cmd.ExecuteContext(ctx)
}

// flags override keys of the configuration file.
type flags struct {
	config, root, address, level string
}

func command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "overlaybd-snapshotter [CONFIG]",
		Short: "Serve containerd snapshots from block images",
		Long: `Serve containerd's snapshots API from images made of block layers, which are
fetched as containers read them. Unless told otherwise it starts the block
daemon, overlaybd-blockd, that it finds beside itself; that one outlives it, so
that containers do not notice a restart.`,
		Example: `  sudo overlaybd-snapshotter
  sudo overlaybd-snapshotter --config /etc/overlaybd-snapshotter/config.toml
  overlaybd-snapshotter config migrate config.json > config.toml`,
		Version:       version,
		Args:          cobra.MaximumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			explicit := cmd.Flags().Changed("config")
			if len(args) == 1 { // as the reference takes it
				f.config, explicit = args[0], true
			}
			cfg, warnings, err := f.load(explicit)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, f.childArgs(explicit), warnings, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&f.config, "config", "c", conf.DefaultPath, "configuration file, TOML")
	cmd.Flags().StringVar(&f.root, "root", "", "state directory (overrides the file)")
	cmd.Flags().StringVar(&f.address, "address", "", "socket for containerd (overrides the file)")
	cmd.Flags().StringVar(&f.level, "log-level", "", "debug, info, warn or error (overrides the file)")
	cmd.AddCommand(configCommand())
	return cmd
}

// load reads the configuration file and applies the flags. The default file
// may be missing: the defaults hold then.
func (f flags) load(explicit bool) (cfg *conf.Config, warnings []string, err error) {
	cfg = conf.Default()
	if _, serr := os.Stat(f.config); serr == nil || explicit {
		if cfg, warnings, err = conf.Load(f.config); err != nil {
			return nil, nil, err
		}
	}
	for _, o := range []struct {
		key   *string
		value string
	}{{&cfg.Root, f.root}, {&cfg.Address, f.address}, {&cfg.Log.Level, f.level}} {
		if o.value != "" {
			*o.key = o.value
		}
	}
	if err := cfg.Validate(); err != nil {
		return nil, nil, fmt.Errorf("configuration %s:\n%w", f.config, err)
	}
	return cfg, warnings, nil
}

// childArgs returns the arguments under which the block daemon sees the same
// configuration.
func (f flags) childArgs(explicit bool) []string {
	var args []string
	if explicit {
		args = append(args, "--config", f.config)
	}
	if f.level != "" {
		args = append(args, "--log-level", f.level)
	}
	return args
}
