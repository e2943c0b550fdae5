// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// patience holds the reads of one device while their source is away, up to a
// limit. It is the outer of the system's two retries; the inner one, in
// fetcher/retry, lasts seconds.
type patience struct {
	limit time.Duration
	log   *slog.Logger

	mu      sync.Mutex
	waiting int   // reads being held
	cause   error // what the latest of them waits for; nil when none is
}

// The pause between two tries doubles from the first to the last of these.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

func newPatience(limit time.Duration, log *slog.Logger) *patience {
	return &patience{limit: limit, log: log}
}

// wrap returns v with patient reads. The result is a backend.Writer exactly if
// v is: exporters tell a writable volume by its type.
func (p *patience) wrap(v backend.Volume) backend.Volume {
	if w, ok := v.(backend.Writer); ok {
		return patientWriter{w, p}
	}
	return patientVolume{v, p}
}

type patientVolume struct {
	backend.Volume
	p *patience
}

func (v patientVolume) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	return v.p.readAt(ctx, v.Volume, b, off)
}

type patientWriter struct {
	backend.Writer
	p *patience
}

func (w patientWriter) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	return w.p.readAt(ctx, w.Writer, b, off)
}

func (p *patience) readAt(ctx context.Context, v backend.Volume, b []byte, off int64) (int, error) {
	n, err := v.ReadAt(ctx, b, off)
	if err == nil || !errors.Is(err, fetcher.ErrTemporary) {
		return n, err
	}
	return p.hold(ctx, err, func() (int, error) { return v.ReadAt(ctx, b, off) })
}

// hold repeats read until it succeeds, fails for good, or patience runs out.
func (p *patience) hold(ctx context.Context, cause error, read func() (int, error)) (n int, err error) {
	p.enter(cause)
	defer p.leave()
	deadline := time.Now().Add(p.limit)
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		if time.Now().Add(pause).After(deadline) {
			return 0, fmt.Errorf("gave up after %v: %w", p.limit, cause)
		}
		if err := sleep(ctx, pause); err != nil {
			return 0, errors.Join(cause, err)
		}
		n, err = read()
		if err == nil || !errors.Is(err, fetcher.ErrTemporary) {
			return n, err
		}
		cause = err
	}
}

func (p *patience) enter(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting++; p.waiting == 1 {
		p.log.Warn("reads wait for their source", slog.Any("err", cause))
	}
	p.cause = cause
}

func (p *patience) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting--; p.waiting == 0 {
		p.cause = nil
		p.log.Info("no read waits any more")
	}
}

// waitingFor returns what a held read waits for, nil if none is held.
func (p *patience) waitingFor() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cause
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
