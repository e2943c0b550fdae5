// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// drip is a body that yields a byte after each pause.
type drip struct {
	ctx   context.Context
	pause time.Duration
}

func (d drip) Read(p []byte) (int, error) {
	select {
	case <-time.After(d.pause):
		return copy(p, "x"), nil
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
}

func (d drip) Close() error { return nil }

// slowHost answers with a header after one time and bytes after another.
type slowHost struct{ header, pause time.Duration }

func (s slowHost) RoundTrip(req *http.Request) (*http.Response, error) {
	select {
	case <-time.After(s.header):
		return &http.Response{StatusCode: http.StatusOK, Request: req, Body: drip{req.Context(), s.pause}}, nil
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

func TestWatch(t *testing.T) {
	for _, c := range []struct {
		name           string
		host           slowHost
		consumer       time.Duration // between two reads
		life, deadline time.Duration // of the blob and the context; 0 for none
		want           error
	}{
		{"slow but steady", slowHost{29 * time.Second, 29 * time.Second}, 0, 0, 0, nil},
		{"slow consumer", slowHost{time.Second, time.Second}, time.Hour, 0, 0, nil},
		{"no header", slowHost{31 * time.Second, 0}, 0, 0, 0, fetcher.ErrTemporary},
		{"no byte", slowHost{0, 31 * time.Second}, 0, 0, 0, fetcher.ErrTemporary},
		{"closed before the header", slowHost{20 * time.Second, 0}, 0, 10 * time.Second, 0, fs.ErrClosed},
		{"closed in the body", slowHost{0, 20 * time.Second}, 0, 10 * time.Second, 0, fs.ErrClosed},
		{"deadline", slowHost{0, 20 * time.Second}, 0, 0, 10 * time.Second, context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				if c.deadline > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), c.deadline)
				}
				defer cancel()
				life, end := context.WithCancel(t.Context())
				defer end()
				if c.life > 0 {
					time.AfterFunc(c.life, end)
				}
				w := Watch{Header: 30 * time.Second, Idle: 30 * time.Second}
				err := w.consume(ctx, life, c.host, c.consumer)
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if c.want != fetcher.ErrTemporary && errors.Is(err, fetcher.ErrTemporary) { //nolint:errorlint // the table's own value
					t.Errorf("got %v, want no temporary failure", err)
				}
			})
		})
	}
}

// TestPace: a host that trickles is given up, unless any byte will do.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		pace     int
		pause    time.Duration // before each byte
		consumer time.Duration
		want     error
	}{
		{0, 29 * time.Second, 0, nil},
		{2, 14 * time.Second, 0, nil},
		{2, 14 * time.Second, time.Hour, nil},
		{2, 16 * time.Second, 0, fetcher.ErrTemporary},
		{10, 14 * time.Second, 0, fetcher.ErrTemporary}, // the third byte is late
	} {
		synctest.Test(t, func(t *testing.T) {
			w := Watch{Header: 30 * time.Second, Idle: 30 * time.Second, Pace: c.pace}
			if err := w.consume(t.Context(), t.Context(), slowHost{0, c.pause}, c.consumer); !errors.Is(err, c.want) {
				t.Errorf("%d bytes, one every %v: got %v, want %v", c.pace, c.pause, err, c.want)
			}
		})
	}
}

// consume reads three bytes of h.
func (w Watch) consume(ctx, life context.Context, h slowHost, pause time.Duration) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://host/", http.NoBody)
	if err != nil {
		return err
	}
	a, err := w.Do(ctx, life, req.URL, func(ctx context.Context) (*http.Response, error) { return h.RoundTrip(req.WithContext(ctx)) })
	if err != nil {
		return err
	}
	defer func() { _ = a.Body.Close() }()
	for range 3 {
		if _, err := io.ReadFull(a.Body, make([]byte, 1)); err != nil {
			return err
		}
		time.Sleep(pause)
	}
	return nil
}
