// SPDX-License-Identifier: Apache-2.0

package limit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
)

// source is an Opener and its blob. A read with a gate waits for it.
type source struct {
	content []byte
	gate    chan struct{} // nil: reads do not wait

	mu     sync.Mutex // guards what follows
	flying map[limit.Class]int
	order  []limit.Class // of reads begun
}

func (s *source) Open(context.Context, fetcher.Ref) (fetcher.Blob, error) { return s, nil }

func (s *source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	s.begin(ctx)
	defer s.end(ctx)
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return bytes.NewReader(s.content).ReadAt(p, off)
}

func (s *source) begin(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flying == nil {
		s.flying = map[limit.Class]int{}
	}
	s.flying[limit.Of(ctx)]++
	s.order = append(s.order, limit.Of(ctx))
}

func (s *source) end(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flying[limit.Of(ctx)]--
}

func (s *source) inFlight() map[limit.Class]int {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	got := map[limit.Class]int{}
	for c, n := range s.flying {
		if n > 0 {
			got[c] = n
		}
	}
	return got
}

func (s *source) Size() int64  { return int64(len(s.content)) }
func (s *source) Close() error { return nil }

func open(t *testing.T, s *source, opts limit.Options) fetcher.Blob {
	t.Helper()
	b, err := limit.New(s, opts).Open(t.Context(), fetcher.Ref{URL: "https://host/x"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// start begins n reads of class c, which end when the source's gate lets them.
func start(t *testing.T, wg *sync.WaitGroup, b fetcher.Blob, c limit.Class, n int) {
	for range n {
		wg.Go(func() {
			if _, err := b.ReadAt(limit.With(t.Context(), c), make([]byte, 1), 0); err != nil {
				t.Errorf("read of class %d: %v", c, err)
			}
		})
	}
}

func TestBlob(t *testing.T) {
	o := limit.New(file.Opener{}, limit.Options{PerHost: 2})
	fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
		path := filepath.Join(t.TempDir(), "blob")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := o.Open(t.Context(), fetcher.Ref{URL: "file://" + path})
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestClassOfContext(t *testing.T) {
	if got := limit.Of(t.Context()); got != limit.Demand {
		t.Errorf("class without With = %d, want Demand", got)
	}
	if got := limit.Of(limit.With(t.Context(), 200)); got != limit.Background {
		t.Errorf("class 200 = %d, want Background", got)
	}
}

func TestSharesOfClasses(t *testing.T) {
	for _, c := range []struct {
		name  string
		asked map[limit.Class]int
		want  map[limit.Class]int
	}{
		{"demand alone", map[limit.Class]int{limit.Demand: 20}, map[limit.Class]int{limit.Demand: 8}},
		{"prefetch alone", map[limit.Class]int{limit.Prefetch: 20}, map[limit.Class]int{limit.Prefetch: 4}},
		{"background alone", map[limit.Class]int{limit.Background: 20}, map[limit.Class]int{limit.Background: 2}},
		{
			"all, lowest first",
			map[limit.Class]int{limit.Background: 20, limit.Prefetch: 20, limit.Demand: 20},
			map[limit.Class]int{limit.Background: 2, limit.Prefetch: 2, limit.Demand: 4},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: []byte("x"), gate: make(chan struct{})}
				b := open(t, s, limit.Options{PerHost: 8})
				var wg sync.WaitGroup
				for _, class := range []limit.Class{limit.Background, limit.Prefetch, limit.Demand} {
					start(t, &wg, b, class, c.asked[class])
					synctest.Wait()
				}
				if got := s.inFlight(); fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("in flight: got %v, want %v", got, c.want)
				}
				close(s.gate)
				wg.Wait()
				if got := s.inFlight(); len(got) != 0 {
					t.Errorf("in flight at the end: %v", got)
				}
			})
		})
	}
}

func TestUrgentGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: []byte("x"), gate: make(chan struct{})}
		b := open(t, s, limit.Options{PerHost: 2})
		var wg sync.WaitGroup
		for _, class := range []limit.Class{limit.Demand, limit.Demand, limit.Background, limit.Prefetch, limit.Demand} {
			start(t, &wg, b, class, 1)
			synctest.Wait()
		}
		for range 5 {
			s.gate <- struct{}{}
			synctest.Wait()
		}
		wg.Wait()
		if got := fmt.Sprintf("%d", s.order); got != "[0 0 0 1 2]" {
			t.Errorf("reads began in order of classes %s", got)
		}
	})
}

func TestHostsDoNotShareSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: []byte("x"), gate: make(chan struct{})}
		o := limit.New(s, limit.Options{PerHost: 2})
		var wg sync.WaitGroup
		for _, host := range []string{"a", "b"} {
			b, err := o.Open(t.Context(), fetcher.Ref{URL: "https://" + host + "/x"})
			if err != nil {
				t.Fatal(err)
			}
			start(t, &wg, b, limit.Demand, 3)
		}
		if got := s.inFlight()[limit.Demand]; got != 4 {
			t.Errorf("%d reads in flight, want 2 at each of 2 hosts", got)
		}
		close(s.gate)
		wg.Wait()
	})
}

func TestWaitingEnds(t *testing.T) {
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
				s := &source{content: []byte("x"), gate: make(chan struct{})}
				o := limit.New(s, limit.Options{PerHost: 2})
				var blobs [2]fetcher.Blob
				for i := range blobs {
					blobs[i], _ = o.Open(t.Context(), fetcher.Ref{URL: "https://host/x"})
				}
				var wg sync.WaitGroup
				start(t, &wg, blobs[0], limit.Demand, 2)
				synctest.Wait()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := make(chan error)
				go func() {
					_, err := blobs[1].ReadAt(ctx, make([]byte, 1), 0)
					got <- err
				}()
				synctest.Wait()
				c.end(blobs[1], cancel)
				if err := <-got; !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				start(t, &wg, blobs[0], limit.Demand, 1) // the slot is not lost
				close(s.gate)
				wg.Wait()
			})
		})
	}
}

func TestStreamHoldsSlotUntilItsEnd(t *testing.T) {
	for name, end := range map[string]func(io.ReadCloser) error{
		"read":   func(r io.ReadCloser) error { _, err := io.ReadAll(r); return err },
		"closed": io.ReadCloser.Close,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := open(t, &source{content: []byte("0123456789")}, limit.Options{PerHost: 2})
				var streams [2]io.ReadCloser
				for i := range streams {
					r, err := fetcher.ReadRange(t.Context(), b, 0, 10)
					if err != nil {
						t.Fatal(err)
					}
					streams[i] = r
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					if _, err := b.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
						t.Error(err)
					}
				}()
				synctest.Wait()
				select {
				case <-done:
					t.Error("a third read began while two streams held both slots")
				default:
				}
				if err := end(streams[0]); err != nil {
					t.Fatal(err)
				}
				<-done
				for _, r := range streams {
					_ = r.Close() // the second time must not give back a slot again
				}
			})
		})
	}
}

func TestBackgroundRate(t *testing.T) {
	for _, c := range []struct {
		class limit.Class
		least time.Duration
	}{{limit.Background, 9 * time.Second}, {limit.Prefetch, 0}, {limit.Demand, 0}} {
		t.Run(fmt.Sprint(c.class), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: make([]byte, 1<<20)}
				b := open(t, s, limit.Options{BackgroundRate: 100 << 10})
				ctx := limit.With(t.Context(), c.class)
				begin := time.Now()
				if _, err := b.ReadAt(ctx, make([]byte, 1<<20), 0); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took < c.least || took > c.least+2*time.Second {
					t.Errorf("ReadAt of 1 MiB at 100 KiB/s took %v", took)
				}
				begin = time.Now()
				r, err := fetcher.ReadRange(ctx, b, 0, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = r.Close() }()
				if n, err := io.Copy(io.Discard, r); n != 1<<20 || err != nil {
					t.Fatal(n, err)
				}
				if took := time.Since(begin); took < c.least || took > c.least+2*time.Second {
					t.Errorf("stream of 1 MiB at 100 KiB/s took %v", took)
				}
			})
		})
	}
}

// TestBackgroundYields to reads on demand while there are any, but goes on.
func TestBackgroundYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		s := &source{content: make([]byte, size)}
		b := open(t, s, limit.Options{})
		took := func(ctx context.Context) time.Duration {
			begin := time.Now()
			r, err := fetcher.ReadRange(ctx, b, 0, size)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			if n, err := io.Copy(io.Discard, r); n != size || err != nil {
				t.Fatal(n, err)
			}
			return time.Since(begin)
		}
		background := limit.With(t.Context(), limit.Background)
		if got := took(background); got != 0 {
			t.Errorf("alone it took %v", got)
		}
		demand, err := fetcher.ReadRange(t.Context(), b, 0, size)
		if err != nil {
			t.Fatal(err)
		}
		if got := took(background); got < 4*time.Second || got > 5*time.Second {
			t.Errorf("beside a reader it took %v", got)
		}
		if got := took(limit.With(t.Context(), limit.Prefetch)); got != 0 {
			t.Errorf("a prefetch took %v", got)
		}
		ended := time.AfterFunc(time.Second, func() { _ = demand.Close() })
		defer ended.Stop()
		if got := took(background); got != time.Second {
			t.Errorf("beside a reader of a second it took %v", got)
		}
	})
}

// TestOverSharesSlots: what is read of a host by way of one Opener counts
// against the other.
func TestOverSharesSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &source{content: []byte("x"), gate: make(chan struct{})}, &source{content: []byte("x"), gate: make(chan struct{})}
		o := limit.New(a, limit.Options{PerHost: 3})
		var wg sync.WaitGroup
		for _, o := range []*limit.Opener{o, o.Over(b)} {
			blob, err := o.Open(t.Context(), fetcher.Ref{URL: "https://host/x", Size: 1})
			if err != nil {
				t.Fatal(err)
			}
			start(t, &wg, blob, limit.Demand, 2)
			synctest.Wait()
		}
		if x, y := a.inFlight()[limit.Demand], b.inFlight()[limit.Demand]; x != 2 || y != 1 {
			t.Errorf("%d and %d reads in flight, want 2 and the one slot left", x, y)
		}
		close(a.gate)
		close(b.gate)
		wg.Wait()
	})
}
