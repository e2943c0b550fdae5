// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// maxStacks bounds the text, in bytes, of a dump of all goroutines.
const maxStacks = 8 << 20

var errSignal = errors.New("stopped by signal")

// handleSignals calls stop at the first SIGTERM or SIGINT and dumps stacks at
// SIGUSR1, until its result is called. SIGPIPE is caught and dropped, not
// ignored: an ignored signal stays so in every program the process starts.
func (g *Group) handleSignals(stop context.CancelCauseFunc) (done func()) {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGPIPE)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for sig := range ch {
			g.handle(sig, stop)
		}
	}()
	return func() {
		signal.Stop(ch) // nothing is sent from here on
		close(ch)
		<-ended
	}
}

func (g *Group) handle(sig os.Signal, stop context.CancelCauseFunc) {
	switch sig {
	case syscall.SIGUSR1:
		g.Logger.Info("goroutine stacks", slog.String("stacks", stacks()))
	case syscall.SIGTERM, syscall.SIGINT:
		// From here on both do what they do to any program: end it.
		signal.Reset(syscall.SIGTERM, syscall.SIGINT)
		g.Logger.Info("stopping; a second signal ends the process at once", slog.String("signal", sig.String()))
		stop(errSignal)
	}
}

// stacks returns the stack of every goroutine.
func stacks() string {
	for n := 64 << 10; ; n *= 2 {
		buf := make([]byte, n)
		if used := runtime.Stack(buf, true); used < n || n >= maxStacks {
			return string(buf[:used])
		}
	}
}
