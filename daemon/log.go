// SPDX-License-Identifier: Apache-2.0

// Package daemon is the life of a process: its logger, the services it runs
// and stops in order, the signals and the service manager it answers, its
// sockets, and its metrics and health endpoint.
//
// The one thing to know: a process is one [Group] of services. Each starts
// when the one before it is ready, and they stop in reverse.
package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

// NewLogger returns a logger writing to w from a level on ("debug", "info",
// "warn" or "error") and in a format: "text", "json", or "auto" for text on a
// terminal and JSON elsewhere.
func NewLogger(w io.Writer, from, format string) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(from)); err != nil {
		return nil, err
	}
	tty := isTerminal(w)
	switch format {
	case "auto", "":
		if !tty {
			return newJSON(w, level), nil
		}
		return newText(w, level, tty), nil
	case "text":
		return newText(w, level, tty), nil
	case "json":
		return newJSON(w, level), nil
	}
	return nil, fmt.Errorf("unknown log format %q", format)
}

func newJSON(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

func newText(w io.Writer, level slog.Leveler, color bool) *slog.Logger {
	return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.StampMilli, NoColor: !color}))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
