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

// run is the program. Its error is not printed yet.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return execute(ctx, newRoot(), args, stdout, stderr)
}

func execute(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) error {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	parsed := false
	root.PersistentPreRun = func(*cobra.Command, []string) { parsed = true }
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !parsed {
		return &adviceError{err, fmt.Sprintf("Run '%s --help' for usage.", cmd.CommandPath()), exitUsage}
	}
	return err
}

// newRoot returns the command with every subcommand, one per file.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "overlaybd",
		Short: "Work on the layers and devices of block images",
		Long: `Work on the layers and devices of block images.

Exit status: 0 on success, 1 if the command failed or found damage, 2 if the
command line is wrong.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(inspectCommand(), verifyCommand(), flattenCommand(),
		attachCommand(), detachCommand(), devicesCommand(), doctorCommand())
	return root
}

// The exit statuses.
const (
	exitFailure = 1
	exitUsage   = 2
)

// An adviceError is an error with what the user can do about it.
type adviceError struct {
	err    error
	advice string // sentences
	status int    // exit status; exitFailure if zero
}

func (a *adviceError) Error() string { return a.err.Error() }
func (a *adviceError) Unwrap() error { return a.err }

// report prints err and the advice that comes with it, and returns the exit
// status that stands for it.
func report(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	text, status := fmt.Sprintf("overlaybd: %v\n", err), exitFailure
	var a *adviceError
	if errors.As(err, &a) {
		text += a.advice + "\n"
		status = max(status, a.status)
	}
	_, _ = io.WriteString(stderr, text) // there is nobody left to tell
	return status
}
