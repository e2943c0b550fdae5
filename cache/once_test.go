// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/overlaybd-go/overlaybd/cache"
)

// TestReadOnce takes what is on disk from there, each missing range by one
// request, and keeps nothing; also when the blocks are an earlier process's.
func TestReadOnce(t *testing.T) {
	dir, data := t.TempDir(), content(4<<20+100)
	const from, to = 1 << 20, 2 << 20
	opts := cache.Options{Dir: dir, MinFree: -1}
	c, err := cache.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Blob(dgst("x"), newSource(data))
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, b, data, from, to-from)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	closeCache(t, c)

	c = openCache(t, opts)
	src := newSource(data)
	b = openBlob(t, c, "x", src)
	for range 2 {
		p := make([]byte, len(data)+1)
		if n, err := b.ReadOnce(t.Context(), p, 0); n != len(data) || !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], data) {
			t.Fatalf("got %d bytes, %v, or wrong ones", n, err)
		}
		want := []span{{0, from}, {to, int64(len(data))}}
		if got := src.asked(); !slices.Equal(got, want) {
			t.Errorf("asked for %v, want %v", got, want)
		}
	}
	if s := b.Stats(); s.FetchedBytes != 2*(int64(len(data))-to+from) || s.HitBytes != 2*(to-from) {
		t.Errorf("got %+v", s)
	}
	if got := c.Stats().WrittenBytes; got != 0 {
		t.Errorf("%d bytes were kept", got)
	}
}

func TestReadOnceFails(t *testing.T) {
	data := content(1 << 20)
	src := newSource(data)
	src.serve = func(_ context.Context, off, _ int64) error {
		if off > 0 {
			return fs.ErrPermission
		}
		return nil
	}
	src.piece = 1000
	b := openBlob(t, openCache(t, cache.Options{}), "x", src)
	if n, err := b.ReadOnce(t.Context(), make([]byte, 5000), 0); n != 1000 || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := b.ReadOnce(t.Context(), make([]byte, 1), -1); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("negative offset: %v", err)
	}
	for _, off := range []int64{1 << 20, 1<<63 - 1} {
		if n, err := b.ReadOnce(t.Context(), make([]byte, 1), off); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("at %d: %d, %v", off, n, err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadOnce(t.Context(), make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestSpareGoesFirst though it was closed last, also after a restart.
func TestSpareGoesFirst(t *testing.T) {
	for _, restart := range []bool{false, true} {
		dir, data := t.TempDir(), content(1<<20)
		opts := cache.Options{Dir: dir, Size: 3<<20 + 512<<10, MinFree: -1}
		c, err := cache.Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"old", "again", "spare"} {
			readAndClose(t, c, name, data, name != "old")
		}
		readAndClose(t, c, "again", data, false) // it is of use once more
		if restart {
			closeCache(t, c)
			if c, err = cache.Open(opts); err != nil {
				t.Fatal(err)
			}
		}
		readAndClose(t, c, "new", data, false)
		for name, want := range map[string]bool{"old": true, "again": true, "spare": false, "new": true} {
			if _, err := os.Stat(dataFile(dir, name)); (err == nil) != want {
				t.Errorf("restart %t, blob %s: %v, want it there: %t", restart, name, err, want)
			}
		}
		closeCache(t, c)
	}
}

func readAndClose(t *testing.T, c *cache.Cache, name string, data []byte, spare bool) {
	t.Helper()
	b, err := c.Blob(dgst(name), newSource(data))
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, b, data, 0, int64(len(data)))
	c.Quiesce()
	if spare {
		b.Spare()
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}
