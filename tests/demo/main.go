// SPDX-License-Identifier: Apache-2.0

// Command demo shows what the project is for: it converts Debian with Python to
// a block image, then runs a program from it on a node that has nothing, once
// after a plain pull and once fetching on demand, and prints what each took.
//
// It runs a registry, containerd and the project's daemons of its own, in
// directories below /tmp, and leaves none of it behind. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

func main() {
	flags := flag.NewFlagSet("demo", flag.ExitOnError)
	small := flags.Bool("small", false, "use a tiny image in place of Debian")
	_ = flags.Parse(os.Args[1:]) // it exits
	testing.Init()               // what tests start asks for the flags of go test
	_ = flag.CommandLine.Parse(nil)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM,
		syscall.SIGHUP, syscall.SIGPIPE) // the terminal is gone, or the reader of the output
	err := run(ctx, os.Stdout, os.Stderr, *small)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted && !errors.Is(err, errLeft):
		fmt.Fprintln(os.Stderr, "demo: interrupted; nothing is left behind")
		os.Exit(130) //nolint:forbidigo // this is main
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

// run prints progress and, at the end, the table to out.
func run(ctx context.Context, out, progress io.Writer, small bool) error {
	h := &host{ctx: ctx, progress: progress}
	return h.run(func(h *host) {
		need.Root(h) // before minutes of building
		need.FUSE(h)
		need.Loop(h)
		d := demo{h: h, image: debian}
		if small {
			d.image = synthetic
		}
		d.run()
		if err := d.print(out); err != nil {
			h.Fatal(err)
		}
	})
}
