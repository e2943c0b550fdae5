// SPDX-License-Identifier: Apache-2.0

// Command overlaybd-blockd is the block daemon of a node: it fetches, caches
// and decodes image layers and shows them to the kernel as block devices, for
// the snapshotter that asks over its socket.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/conf"
)

var version = "devel" // set by the linker

// spareProcs is how many threads may run Go code at a time beyond one for each
// processor. To the runtime, a thread that waits in the kernel for the next
// request of a device runs, until the runtime's monitor takes its place away.
// Where there is no place left, as with 2 processors and the 2 readers of a FUSE
// device, it does so at each request, which cost more than a third of the
// daemon's CPU time; see BenchmarkLocal of tests/bench.
const spareProcs = 6

func main() {
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + spareProcs)
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "overlaybd-blockd:", err)
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

func command() *cobra.Command {
	var path, level string
	cmd := &cobra.Command{
		Use:   "overlaybd-blockd",
		Short: "Serve block devices of container images",
		Long: `Serve block devices of container images to overlaybd-snapshotter, which
normally starts this daemon itself.

On SIGTERM or SIGINT it stops. TCMU and ublk devices stay: whoever uses them
waits until the daemon is started again. FUSE devices end with the daemon, so
that it first waits until none is in use; a second signal stops it at once, and
readers of FUSE devices get I/O errors.`,
		Example:       "  overlaybd-blockd --config /etc/overlaybd-snapshotter/config.toml",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, warnings, err := loadConfig(path, cmd.Flags().Changed("config"))
			if err != nil {
				return err
			}
			if level != "" {
				cfg.Log.Level = level
			}
			if err := cfg.Validate(); err != nil {
				return fmt.Errorf("configuration %s:\n%w", path, err)
			}
			return serve(cmd.Context(), cfg, warnings, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", conf.DefaultPath, "configuration file, TOML")
	cmd.Flags().StringVar(&level, "log-level", "", "debug, info, warn or error (overrides the file)")
	return cmd
}

// loadConfig reads the file at path. The default file may be missing: the
// defaults hold then.
func loadConfig(path string, explicit bool) (*conf.Config, []string, error) {
	if _, err := os.Stat(path); os.IsNotExist(err) && !explicit {
		return conf.Default(), nil, nil
	}
	return conf.Load(path)
}
