// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// openFile opens one file, whatever it is asked for.
type openFile string

func (path openFile) Open(ctx context.Context, _ fetcher.Ref) (fetcher.Blob, error) {
	return file.Opener{}.Open(ctx, fetcher.Ref{URL: "file://" + string(path)})
}

// expectLayer expects a layer of a cache in e, and returns its ref.
func expectLayer(t *testing.T) (e *expectations, ref fetcher.Ref) {
	t.Helper()
	_, files := need.Golden(t, "rw/a.commit.z.tar")
	path := files["rw/a.commit.z.tar"].Path
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(cache.Options{Dir: filepath.Join(t.TempDir(), "cache")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	v := &spec.Volume{RepoBlobURL: "http://r/v2/a/blobs", Lowers: []spec.Lower{{Digest: "sha256:" + sixtyFour, Size: st.Size()}}}
	ref = fetcher.Ref{URL: v.BlobURL(v.Lowers[0]), Digest: v.Lowers[0].Digest, Size: st.Size()}
	e = newExpectations(c.Opener(openFile(path)), slog.New(slog.DiscardHandler))
	t.Cleanup(e.close)
	e.begin(ref, func(ctx context.Context, x *expectation) error { return e.hold(ctx, x, openOnce(v)) })
	return e, ref
}

const sixtyFour = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestExpectationIsHeld until it is taken, or for a time.
func TestExpectationIsHeld(t *testing.T) {
	for _, tc := range []struct {
		name string
		wait time.Duration
		held bool
	}{
		{"taken", expectTime - time.Second, true},
		{"over", expectTime + time.Second, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, ref := expectLayer(t)
				synctest.Wait()
				e.mu.Lock()
				x := e.all[ref]
				e.mu.Unlock()
				if x == nil || x.blob == nil {
					t.Fatal("the layer is not open")
				}
				time.Sleep(tc.wait)
				b, err := e.Open(t.Context(), ref)
				if err != nil {
					t.Fatal(err)
				}
				if got := b == fetcher.Blob(x.blob); got != tc.held {
					t.Errorf("was it the blob that had been opened: %v, want %v", got, tc.held)
				}
				if len(e.all) != 0 {
					t.Error("it is expected again")
				}
				_, err = x.blob.ReadAt(t.Context(), make([]byte, 512), 0)
				if errors.Is(err, fs.ErrClosed) == tc.held || tc.held && err != nil {
					t.Errorf("the blob that had been opened reads with %v", err)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A slow Opener opens nothing until its caller has had enough.
type slow struct{ asked atomic.Int32 }

func (s *slow) Open(ctx context.Context, _ fetcher.Ref) (fetcher.Blob, error) {
	s.asked.Add(1)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestExpectationsAreBounded: so many are there, so many are fetched at a time,
// and none once they are closed.
func TestExpectationsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var next slow
		e := newExpectations(&next, slog.New(slog.DiscardHandler))
		flood := func() (expected int) {
			for i := range 2 * maxExpected {
				e.begin(fetcher.Ref{URL: fmt.Sprint(i)}, func(ctx context.Context, x *expectation) error { return e.hold(ctx, x, nil) })
			}
			synctest.Wait()
			return len(e.all)
		}
		if got := flood(); got != maxExpected || next.asked.Load() != maxWarming {
			t.Errorf("%d are expected and %d are fetched, want %d and %d", got, next.asked.Load(), maxExpected, maxWarming)
		}
		e.close()
		asked := next.asked.Load()
		if got := flood(); got != 0 || next.asked.Load() != asked {
			t.Errorf("after the end %d are expected and %d more are fetched", got, next.asked.Load()-asked)
		}
	})
}
