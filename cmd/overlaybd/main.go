// SPDX-License-Identifier: Apache-2.0

// Command overlaybd works on the layers of block images, one file at a time,
// and on the devices of the block daemon. Called overlaybd-attacher it is the
// reference's program of that name.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := newRoot()
	if filepath.Base(os.Args[0]) == attacherName {
		root = newAttacher()
	}
	err := execute(ctx, root, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(report(err, os.Stderr))
}
