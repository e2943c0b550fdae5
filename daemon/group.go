// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// defaultGrace is how long services may take to stop. The service manager
// kills after 90 s.
const defaultGrace = 30 * time.Second

// A Service is one long-lived part of a process.
type Service struct {
	Name string

	// Run works until ctx ends, then cleans up and returns. It calls ready
	// when others may rely on it; a service that returns without an error
	// counts as ready, too.
	Run func(ctx context.Context, ready func()) error
}

// A Group runs the services of a process. The zero value is ready for use,
// once.
type Group struct {
	Logger  *slog.Logger  // nil: none
	Grace   time.Duration // for all services to stop in; 0: 30 s
	Manager *Manager      // told when the group is ready and when it stops; nil: none

	ready atomic.Bool
}

// errNotReady reports that the group is starting, or stopping.
var errNotReady = errors.New("not ready")

// Ready returns nil while every service is up.
func (g *Group) Ready() error {
	if g.ready.Load() {
		return nil
	}
	return errNotReady
}

// Run starts the services in order, each after the one before is ready, and
// waits for the first failure, for SIGTERM or SIGINT, or for ctx to end. It
// then stops them in reverse, each after the one behind it has returned. It
// returns what failed, and nil for an orderly stop.
//
// A second SIGTERM or SIGINT ends the process at once. SIGUSR1 logs the stacks
// of all goroutines.
func (g *Group) Run(ctx context.Context, services ...Service) error {
	if g.Logger == nil {
		g.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer g.handleSignals(stop)()
	defer g.Manager.keepAlive(g.Logger)()

	up := g.start(ctx, stop, services)
	if ctx.Err() == nil {
		g.setReady()
		wait(ctx, up)
	}
	g.ready.Store(false)
	g.Manager.tell(g.Logger, "STOPPING=1")
	var failed *serviceError
	errors.As(context.Cause(ctx), &failed)
	return g.stop(up, failed)
}

func (g *Group) setReady() {
	g.ready.Store(true)
	g.Manager.tell(g.Logger, "READY=1")
	g.Logger.Info("ready")
}

// serviceError says which service failed.
type serviceError struct {
	name string
	err  error
}

func (e *serviceError) Error() string { return e.name + ": " + e.err.Error() }
func (e *serviceError) Unwrap() error { return e.err }

// running is a service that was started.
type running struct {
	name   string
	cancel context.CancelFunc
	ready  chan struct{}
	done   chan struct{}
	err    *serviceError // valid once done is closed
}

// start starts services one after the other until ctx ends.
func (g *Group) start(ctx context.Context, stop context.CancelCauseFunc, services []Service) (up []*running) {
	for _, s := range services {
		if ctx.Err() != nil {
			break
		}
		g.Logger.Debug("starting service", slog.String("service", s.Name))
		r := launch(ctx, stop, s)
		up = append(up, r)
		select {
		case <-r.ready:
		case <-r.done:
		case <-ctx.Done():
		}
	}
	return up
}

// launch runs s until it returns. Its context outlives ctx: the end of ctx
// stops services one by one, not all at once.
func launch(ctx context.Context, stop context.CancelCauseFunc, s Service) *running {
	r := &running{name: s.Name, ready: make(chan struct{}), done: make(chan struct{})}
	ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(r.done)
		defer r.cancel()
		err := s.Run(ctx, sync.OnceFunc(func() { close(r.ready) }))
		if err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
			r.err = &serviceError{s.Name, err}
			stop(r.err)
		}
	}()
	return r
}

// wait returns when ctx ends or every service has returned.
func wait(ctx context.Context, up []*running) {
	for _, r := range up {
		select {
		case <-r.done:
		case <-ctx.Done():
			return
		}
	}
}

// stop stops the services in reverse, and returns first and what else failed.
func (g *Group) stop(up []*running, first *serviceError) error {
	var errs []error
	if first != nil {
		errs = append(errs, first)
	}
	grace := g.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	expired := time.After(grace)
	for i, r := range slices.Backward(up) {
		g.Logger.Debug("stopping service", slog.String("service", r.name))
		r.cancel()
		select {
		case <-r.done:
			if r.err != nil && r.err != first {
				errs = append(errs, r.err)
			}
		case <-expired:
			return errors.Join(append(errs, abandon(up[:i+1], grace))...)
		}
	}
	return errors.Join(errs...)
}

// abandon tells services to stop without waiting for them: the process is
// about to end.
func abandon(up []*running, grace time.Duration) error {
	for _, r := range up {
		r.cancel()
	}
	return fmt.Errorf("%s: still running %v after it was told to stop", up[len(up)-1].name, grace)
}
