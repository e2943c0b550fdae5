// SPDX-License-Identifier: Apache-2.0

// Command convertor turns OCI and Docker images into block images, in user
// space.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/containerd/log"
)

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(192 << 20) // bytes; with what is not the heap, 256 MiB
	}
	_ = log.SetLevel("error") // containerd's; it has no other logger
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	os.Exit(report(ctx, err, os.Stderr))
}
