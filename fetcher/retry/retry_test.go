// SPDX-License-Identifier: Apache-2.0

package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
)

var errPermanent = errors.New("permanent")

// source is an Opener and its blob, whose calls fail as scripted.
type source struct {
	content []byte
	errs    []error // of the calls to come; nil entries succeed
	partial int     // bytes a failing read still yields
	calls   []string
	closed  bool
}

func (s *source) fail(format string, args ...any) error {
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
	if len(s.errs) == 0 {
		return nil
	}
	err := s.errs[0]
	s.errs = s.errs[1:]
	return err
}

func (s *source) Open(context.Context, fetcher.Ref) (fetcher.Blob, error) {
	return s, s.fail("open")
}

func (s *source) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if err := s.fail("read %d at %d", len(p), off); err != nil {
		return copy(p[:min(s.partial, len(p))], s.content[off:]), err
	}
	return bytes.NewReader(s.content).ReadAt(p, off)
}

func (s *source) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	err := s.fail("stream %d at %d", n, off)
	if err != nil && s.partial == 0 {
		return nil, err
	}
	if err == nil {
		return io.NopCloser(bytes.NewReader(s.content[off : off+n])), nil
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(s.content[off:off+int64(s.partial)]), failing{err})), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (s *source) Size() int64  { return int64(len(s.content)) }
func (s *source) Close() error { s.closed = true; return nil }

var errTemporary = fmt.Errorf("try again: %w", fetcher.ErrTemporary)

func repeat(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}

func open(t *testing.T, s *source, opts retry.Options) fetcher.Blob {
	t.Helper()
	b, err := retry.New(s, opts).Open(t.Context(), fetcher.Ref{})
	if err != nil {
		t.Fatal(err)
	}
	s.calls = nil
	return b
}

func TestBlob(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	o := registry.New(registry.Options{})
	t.Cleanup(func() { _ = o.Close() })
	fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
		b, err := retry.New(o, retry.Options{}).Open(t.Context(), reg.AddBlob("r", content))
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestOpenIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{errs: repeat(errTemporary, 3)}
		if _, err := retry.New(s, retry.Options{}).Open(t.Context(), fetcher.Ref{}); err != nil || len(s.calls) != 4 {
			t.Errorf("got %v after %d calls, want success after 4", err, len(s.calls))
		}
	})
}

func TestReadResumesWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: []byte("0123456789")}
		b := open(t, s, retry.Options{})
		s.errs, s.partial = repeat(errTemporary, 2), 3
		p := make([]byte, 8)
		n, err := b.ReadAt(t.Context(), p, 1)
		if n != 8 || err != nil || string(p) != "12345678" {
			t.Errorf("got %d, %v, %q", n, err, p)
		}
		if got := fmt.Sprint(s.calls); got != "[read 8 at 1 read 5 at 4 read 2 at 7]" {
			t.Errorf("got calls %s", got)
		}
	})
}

func TestStreamResumesWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: []byte("0123456789")}
		b := open(t, s, retry.Options{})
		s.errs, s.partial = repeat(errTemporary, 2), 3
		r, err := fetcher.ReadRange(t.Context(), b, 1, 8)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		if got, err := io.ReadAll(r); string(got) != "12345678" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if got := fmt.Sprint(s.calls); got != "[stream 8 at 1 stream 5 at 4 stream 2 at 7]" {
			t.Errorf("got calls %s", got)
		}
	})
}

func TestPermanentErrorIsNotRetried(t *testing.T) {
	s := &source{content: []byte("0123456789")}
	b := open(t, s, retry.Options{})
	s.errs = repeat(errPermanent, 2)
	if _, err := b.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, errPermanent) {
		t.Errorf("read: got %v", err)
	}
	if _, err := fetcher.ReadRange(t.Context(), b, 0, 1); !errors.Is(err, errPermanent) {
		t.Errorf("stream: got %v", err)
	}
	if len(s.calls) != 2 {
		t.Errorf("got calls %v", s.calls)
	}
}

func TestBudgetBoundsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: []byte("0123456789")}
		b := open(t, s, retry.Options{Budget: 4 * time.Second})
		s.errs = repeat(errTemporary, 1000)
		start := time.Now()
		_, err := b.ReadAt(t.Context(), make([]byte, 1), 0)
		took := time.Since(start)
		if !errors.Is(err, fetcher.ErrTemporary) || took > 4*time.Second || took < 2*time.Second {
			t.Errorf("got %v after %v, want the temporary error within the 4 s budget", err, took)
		}
		if n := len(s.calls); n < 5 || n > 20 {
			t.Errorf("took %d tries", n)
		}
	})
}

// TestProgressRenewsBudget reads a blob of which every request yields a byte.
func TestProgressRenewsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: bytes.Repeat([]byte("x"), 100)}
		b := open(t, s, retry.Options{Budget: time.Second, First: 500 * time.Millisecond})
		s.errs, s.partial = repeat(errTemporary, 99), 1
		if n, err := b.ReadAt(t.Context(), make([]byte, 100), 0); n != 100 || err != nil {
			t.Errorf("got %d, %v", n, err)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		name      string
		after     time.Duration
		calls     int
		least     time.Duration
		succeeded bool
	}{
		{"within the budget", 3 * time.Second, 2, 3 * time.Second, true},
		{"beyond the budget", 30 * time.Second, 1, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: []byte("0123456789")}
				b := open(t, s, retry.Options{Budget: 5 * time.Second})
				s.errs = []error{&fetcher.RetryAfterError{After: c.after, Err: errors.New("429")}}
				start := time.Now()
				_, err := b.ReadAt(t.Context(), make([]byte, 1), 0)
				if took := time.Since(start); (err == nil) != c.succeeded || len(s.calls) != c.calls || took < c.least || took > c.least+time.Second {
					t.Errorf("got %v after %v and %d calls", err, took, len(s.calls))
				}
				var ra *fetcher.RetryAfterError
				if !c.succeeded && !errors.As(err, &ra) {
					t.Errorf("got %v, want the RetryAfterError kept", err)
				}
			})
		})
	}
}

func TestPauseEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(b fetcher.Blob, cancel func())
		want error
	}{
		{"with the context", func(_ fetcher.Blob, cancel func()) { cancel() }, context.Canceled},
		{"with the blob", func(b fetcher.Blob, _ func()) { _ = b.Close() }, fs.ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: []byte("0123456789")}
				b := open(t, s, retry.Options{First: 4 * time.Second})
				s.errs = repeat(errTemporary, 10)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := make(chan error)
				go func() {
					_, err := b.ReadAt(ctx, make([]byte, 1), 0)
					got <- err
				}()
				synctest.Wait()
				c.end(b, cancel)
				if err := <-got; !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			})
		})
	}
}

func TestStreamOverRegistrySurvivesFaults(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Redirect: true, Auth: fetchertest.Bearer})
	o := registry.New(registry.Options{})
	t.Cleanup(func() { _ = o.Close() })
	content := fetchertest.Content(1<<20, 1)
	b, err := retry.New(o, retry.Options{First: time.Millisecond}).Open(t.Context(), reg.AddBlob("r", content))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	for _, f := range []fetchertest.Fault{
		{Status: 503},
		{Body: fetchertest.Cut, After: 100_000},
		{Body: fetchertest.Short, After: 50_000},
		{Reset: true},
		{Status: 429, RetryAfter: "0"},
		{Body: fetchertest.Cut, After: 1},
	} {
		reg.Fault(f)
	}
	reg.Fault(fetchertest.Fault{At: fetchertest.Origin, Status: 502})
	r, err := fetcher.ReadRange(t.Context(), b, 10, b.Size()-10)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[10:]) {
		t.Errorf("got %d bytes and %v", len(got), err)
	}
}
