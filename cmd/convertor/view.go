// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/overlaybd-go/overlaybd/image/convert/pipeline"
)

// A view shows how far a conversion is: a bar per layer on a terminal, and a
// line per layer elsewhere. What is logged goes through it.
type view struct {
	w     io.Writer
	bars  *mpb.Progress // nil where there is no terminal
	goals []goal

	mu     sync.Mutex // guards what follows
	shown  map[bar]*shown
	closed bool
}

// A shown layer is one that there was an event of.
type shown struct {
	stage atomic.Int32 // pipeline.Stage; read while a bar is drawn, when mu may be held
	bar   *mpb.Bar     // nil where there is no terminal
}

// A bar is a layer of one platform, for one image to be written.
type bar struct {
	chain    digest.Digest
	platform string
	output   int
}

func barOf(e pipeline.Event) bar {
	return bar{e.Layer.ChainID, platforms.Format(e.Layer.Platform), e.Output}
}

func newView(w io.Writer, goals []goal) *view {
	v := &view{w: w, goals: goals, shown: map[bar]*shown{}}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		v.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))
	}
	return v
}

// Write writes a line of the log, above the bars if there are any.
func (v *view) Write(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.bars != nil && !v.closed {
		return v.bars.Write(p)
	}
	return v.w.Write(p)
}

// show takes note of an event.
func (v *view) show(e pipeline.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return
	}
	if e.Stage == pipeline.Copied || e.Stage == pipeline.Mounted {
		if v.bars == nil {
			v.line(e, fmt.Sprintf("%s, %s", stages[e.Stage], size(e.Total)))
		}
		return // a bar is of the new layer
	}
	key := barOf(e)
	l, known := v.shown[key]
	if !known {
		l = &shown{}
		v.shown[key] = l
	}
	before := pipeline.Stage(l.stage.Swap(int32(e.Stage)))
	if v.bars != nil {
		v.draw(l, e)
		return
	}
	if known && before == e.Stage {
		return
	}
	switch e.Stage {
	case pipeline.Applying, pipeline.Packing:
		v.line(e, stages[e.Stage])
	case pipeline.Finished, pipeline.Reused:
		v.line(e, fmt.Sprintf("%s %s, %s", stages[e.Stage], e.Blob.Digest, size(e.Blob.Size)))
	case pipeline.Uploading, pipeline.Copied, pipeline.Mounted:
	}
}

// stages are what people call them.
var stages = map[pipeline.Stage]string{
	pipeline.Applying: "reading", pipeline.Packing: "compressing", pipeline.Uploading: "uploading",
	pipeline.Finished: "stored as", pipeline.Reused: "found again as",
	pipeline.Copied: "the source's copied", pipeline.Mounted: "the source's mounted",
}

func (v *view) line(e pipeline.Event, text string) {
	_, _ = fmt.Fprintf(v.w, "%s: %s\n", v.title(e), text) // what could one do about it
}

// title names the layer, and the image if there are several.
func (v *view) title(e pipeline.Event) string {
	l, format := e.Layer, ""
	if len(v.goals) > 1 {
		format = " " + v.goals[e.Output].format.String()
	}
	return fmt.Sprintf("%s layer %d/%d %.12s%s", platforms.Format(l.Platform), l.Index+1, l.Count, l.Source.Digest.Encoded(), format)
}

// draw moves the bar of a layer. v.mu is held.
func (v *view) draw(l *shown, e pipeline.Event) {
	if l.bar == nil {
		label := func(decor.Statistics) string { return stages[pipeline.Stage(l.stage.Load())] }
		l.bar = v.bars.AddBar(0, mpb.BarPriority(e.Layer.Index),
			mpb.PrependDecorators(decor.Name(v.title(e)+" ", decor.WCSyncSpaceR), decor.Any(label, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
	}
	if e.Stage == pipeline.Packing {
		return // nobody knows how far that is
	}
	l.bar.SetTotal(e.Total, false)
	l.bar.SetCurrent(e.Done)
	if e.Stage == pipeline.Finished || e.Stage == pipeline.Reused {
		l.bar.SetTotal(e.Total, true)
	}
}

// close leaves the bars as they are.
func (v *view) close() {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return
	}
	v.closed = true
	bars := make([]*mpb.Bar, 0, len(v.shown))
	for _, l := range v.shown {
		if l.bar != nil {
			bars = append(bars, l.bar)
		}
	}
	v.mu.Unlock()
	if v.bars == nil {
		return
	}
	for _, b := range bars {
		b.Abort(false) // those that are complete stay so
	}
	v.bars.Wait()
}

func logLevel(verbose bool) slog.Level {
	if verbose {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// dropTime leaves the time out: whoever reads knows it.
func dropTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}
