// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

var version = "devel" // set by the linker

// The exit statuses.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// errUsage is the class of errors in the command line.
var errUsage = errors.New("wrong command line")

func usage(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errUsage}, args...)...)
}

// run is the program. Its error is not printed yet.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	parsed := false
	root.PersistentPreRun = func(*cobra.Command, []string) { parsed = true }
	err := root.ExecuteContext(ctx)
	if err != nil && !parsed {
		return usage("%w", err)
	}
	return err
}

// report prints err and returns the exit status that stands for it.
func report(ctx context.Context, err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	text, status := fmt.Sprintf("convertor: %v\n", err), exitFailure
	switch {
	case errors.Is(err, errUsage):
		text += "Run 'convertor --help' for usage.\n"
		status = exitUsage
	case ctx.Err() != nil:
		text, status = "convertor: interrupted\n", exitInterrupted
	}
	_, _ = io.WriteString(stderr, text) // there is nobody left to tell
	return status
}

func newRoot() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:   "convertor",
		Short: "Convert an OCI or Docker image into a block image",
		Long: `Convert an OCI or Docker image into a block image, without root, mounts,
devices or other programs.

An image is named as one of
  HOST/REPOSITORY:TAG            in a registry; @DIGEST to read one
  oci:DIR[:TAG]                  in an OCI image layout
  oci-archive:FILE[:TAG]         in a tar of such a layout
  docker-archive:FILE[:NAME]     in what docker save writes; to read only
and is read from --source and written to --target, as a native image, which has
all its blocks in layers of its own, or to --turbo-target, as a turbo image. Its
layers are small: they map into the layers of the source, which they need in
the same repository, and are brought there if need be. Both may be written in
one run. -r with -i, -o and --turboOCI is the short form for tags of one
repository; --attach writes a turbo image that needs no name, as nodes find it by
that of the source.

Credentials are those of -u, or else of docker login. Layers that were
converted before are found again with --db-str. If anything fails, no target
has a new name.

Exit status: 0 on success, 1 on failure, 2 if the command line is wrong, 130
if interrupted.`,
		Example: `  convertor -r registry.example/python -i 3.13 -o 3.13-block
  convertor --source docker.io/library/redis:7 --target localhost:5000/redis:block --plain
  convertor --source oci:./image --target oci-archive:block.tar --platform linux/amd64
  convertor -r registry.example/app -i v1 -o v1-block --db-str /var/lib/convertor.db
  convertor -r registry.example/app -i v1 -o v1-block --turboOCI v1-turbo --fstype erofs
  convertor --source registry.example/app:v1 --attach
  convertor --source docker.io/library/redis:7 --turbo-target localhost:5000/redis:turbo --plain`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.settings()
			if err != nil {
				return err
			}
			return convertImage(cmd.Context(), s, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	root.Flags().SortFlags = false
	f.register(root.Flags())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%w", err) })
	return root
}
