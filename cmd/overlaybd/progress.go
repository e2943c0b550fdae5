// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// A progress shows on a terminal how far a command is.
type progress struct {
	w     io.Writer // nil if there is no terminal
	name  string
	shown int64 // per cent; -1 before the first
}

func newProgress(w io.Writer, name string) *progress {
	p := &progress{name: printable(name), shown: -1}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.w = w
	}
	return p
}

// show redraws the line when the percentage has changed.
func (p *progress) show(done, total int64) {
	percent := int64(float64(done) / float64(total) * 100)
	if p.w == nil || percent == p.shown {
		return
	}
	p.shown = percent
	_, _ = fmt.Fprintf(p.w, "\r%s: %3d %% of %s", p.name, percent, size(total))
}

// clear removes the line.
func (p *progress) clear() {
	if p.shown >= 0 {
		_, _ = io.WriteString(p.w, "\r\x1b[K")
	}
}
