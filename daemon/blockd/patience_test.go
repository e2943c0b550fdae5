// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// outage is a Volume whose source is away until a moment.
type outage struct {
	until time.Time
	err   error
}

func (o outage) ReadAt(_ context.Context, p []byte, _ int64) (int, error) {
	if time.Now().Before(o.until) {
		return 0, fmt.Errorf("registry: %w", o.err)
	}
	return len(p), nil
}
func (o outage) Size() int64  { return 1 << 20 }
func (o outage) Close() error { return nil }

func TestPatience(t *testing.T) {
	for _, tc := range []struct {
		name   string
		outage time.Duration
		err    error
		want   error         // class of the read's error
		atMost time.Duration // how long the reader was held
	}{
		{"short outage", 10 * time.Second, fetcher.ErrTemporary, nil, 15 * time.Second},
		{"outage longer than patience", time.Hour, fetcher.ErrTemporary, fetcher.ErrTemporary, time.Minute},
		{"lasting error is not waited for", time.Hour, fetcher.ErrNotFound, fetcher.ErrNotFound, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatience(time.Minute, slog.New(slog.DiscardHandler))
				start := time.Now()
				v := p.wrap(outage{start.Add(tc.outage), tc.err})
				n, err := v.ReadAt(t.Context(), make([]byte, 512), 0)
				if !errors.Is(err, tc.want) || tc.want == nil && (err != nil || n != 512) {
					t.Errorf("got %d, %v; want error %v", n, err, tc.want)
				}
				if held := time.Since(start); held > tc.atMost {
					t.Errorf("reader was held %v, want at most %v", held, tc.atMost)
				}
			})
		})
	}
}

func TestPatienceShowsWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatience(time.Minute, slog.New(slog.DiscardHandler))
		v := p.wrap(outage{time.Now().Add(10 * time.Second), fetcher.ErrTemporary})
		done := make(chan error)
		go func() {
			_, err := v.ReadAt(t.Context(), make([]byte, 512), 0)
			done <- err
		}()
		synctest.Wait()
		if err := p.waitingFor(); !errors.Is(err, fetcher.ErrTemporary) {
			t.Errorf("got %v while a read is held, want its cause", err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := p.waitingFor(); err != nil {
			t.Errorf("got %v after the outage, want nil", err)
		}
	})
}

func TestPatienceEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatience(time.Hour, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		v := p.wrap(outage{time.Now().Add(time.Hour), fetcher.ErrTemporary})
		if _, err := v.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want context.DeadlineExceeded", err)
		}
	})
}

// TestPatienceKeepsReadOnly: exporters take a volume for writable by its type.
func TestPatienceKeepsReadOnly(t *testing.T) {
	p := newPatience(time.Minute, slog.New(slog.DiscardHandler))
	if _, ok := p.wrap(outage{}).(backend.Writer); ok {
		t.Error("a read-only volume became writable")
	}
}

func TestKeyedMutex(t *testing.T) {
	var k keyedMutex
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := k.lock(t.Context(), "b")
	if err != nil {
		t.Fatalf("another key is locked too: %v", err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v for a held key, want context.Canceled", err)
	}
	unlock()
	if unlock, err = k.lock(t.Context(), "a"); err != nil {
		t.Fatalf("released key is still locked: %v", err)
	}
	unlock()
	if len(k.held) != 0 {
		t.Errorf("%d keys are remembered after all were released", len(k.held))
	}
}
