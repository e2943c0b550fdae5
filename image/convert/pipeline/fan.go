// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
)

// A reader takes a stream, to its end unless it fails.
type reader func(ctx context.Context, r io.Reader) error

// fan gives every reader what r has, each piece to all of them before the
// next: the slowest sets the pace, and nothing is kept. If one fails, all end,
// and its error is returned.
func fan(ctx context.Context, r io.Reader, readers []reader) error {
	if len(readers) == 1 {
		return readers[0](ctx, r)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	var failed atomic.Bool
	pipes, ends := make([]io.Writer, len(readers)), make([]*io.PipeWriter, len(readers))
	for i, read := range readers {
		in, out := io.Pipe()
		pipes[i], ends[i] = out, out
		running.Go(func() {
			err := read(ctx, in)
			if err == nil {
				_, err = io.Copy(io.Discard, in) // others may want the rest
			}
			if err != nil {
				failed.Store(true)
				cancel(err) // the first is the cause: others may follow from it
			}
			_ = in.CloseWithError(err) // it returns none
		})
	}
	end := func(err error) {
		for _, w := range ends {
			_ = w.CloseWithError(err) // nil stands for the end of the stream; it returns none
		}
	}
	defer context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })()
	_, err := io.CopyBuffer(io.MultiWriter(pipes...), r, make([]byte, pieceSize))
	end(err)
	running.Wait()
	if failed.Load() {
		return context.Cause(ctx)
	}
	return err
}
