// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// A host lets the parts that tests start run without a test: it is a testing.TB
// whose context ends when the user interrupts, and whose cleanups always run.
type host struct {
	testing.TB // nil: what is not below is not used

	ctx      context.Context
	progress io.Writer
	cleanups []func()
	errs     []error
}

// errLeft says that cleaning up has failed.
var errLeft = errors.New("something may be left behind")

// run calls f, then what f left to clean up, the last first.
func (h *host) run(f func(h *host)) error {
	inner := &host{ctx: h.ctx, progress: h.progress}
	inner.protect(func() { f(inner) })
	err := errors.Join(inner.errs...)
	inner.errs = nil
	for _, c := range slices.Backward(inner.cleanups) {
		inner.protect(c)
	}
	if left := errors.Join(inner.errs...); left != nil {
		err = errors.Join(err, fmt.Errorf("%w: %w", errLeft, left))
	}
	return err
}

// protect calls f, which may end its goroutine as Fatal does.
func (h *host) protect(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// node calls f as run does, and goes on only if that succeeded.
func (h *host) node(f func(h *host)) {
	if err := h.run(f); err != nil {
		h.Fatal(err)
	}
}

func (h *host) Helper()                  {}
func (h *host) Context() context.Context { return h.ctx }
func (h *host) Cleanup(f func())         { h.cleanups = append(h.cleanups, f) }
func (h *host) Failed() bool             { return len(h.errs) > 0 }

func (h *host) TempDir() string {
	dir, err := os.MkdirTemp("", "obd-")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			h.Error(err)
		}
	})
	return dir
}

func (h *host) Log(args ...any) {
	_, _ = fmt.Fprint(h.progress, "  ", fmt.Sprintln(args...))
}

func (h *host) Logf(format string, args ...any) { h.Log(fmt.Sprintf(format, args...)) }

func (h *host) Error(args ...any) {
	h.errs = append(h.errs, errors.New(strings.TrimSuffix(fmt.Sprintln(args...), "\n")))
}

func (h *host) Errorf(format string, args ...any) { h.Error(fmt.Sprintf(format, args...)) }

func (h *host) Fatal(args ...any) {
	h.Error(args...)
	runtime.Goexit()
}

func (h *host) Fatalf(format string, args ...any) { h.Fatal(fmt.Sprintf(format, args...)) }

// Skipf is called where the machine lacks something.
func (h *host) Skipf(format string, args ...any) { h.Fatalf(format, args...) }
