// SPDX-License-Identifier: Apache-2.0

package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
)

var (
	errTemporary = fmt.Errorf("trouble: %w", fetcher.ErrTemporary)
	errMissing   = fmt.Errorf("no such repository: %w", fetcher.ErrNotFound)
)

// site is a mirror or an origin, and every blob there.
type site struct {
	url     string
	content []byte
	err     error // of every read
	partial int   // bytes a failing read yields
	reads   int
	opens   int
	closed  bool
}

func (s *site) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	s.reads++
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if s.err != nil {
		return copy(p[:min(len(p), s.partial)], s.content[off:]), s.err
	}
	if s.closed {
		return 0, fs.ErrClosed
	}
	return bytes.NewReader(s.content).ReadAt(p, off)
}

func (s *site) Size() int64  { return int64(len(s.content)) }
func (s *site) Close() error { s.closed = true; return nil }

// sites is the Source and the Opener of mirrors and, last, an origin.
type sites []*site

func (s sites) Mirrors(_ context.Context, ref fetcher.Ref) ([]fetcher.Ref, error) {
	var refs []fetcher.Ref
	for _, at := range s {
		refs = append(refs, fetcher.Ref{URL: at.url, Size: ref.Size})
	}
	return refs, nil
}

func (s sites) Open(_ context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	for _, at := range s {
		if at.url == ref.URL {
			at.opens++
			if ref.Size == 0 && at.err != nil {
				return nil, at.err
			}
			return at, nil
		}
	}
	return nil, fetcher.ErrNotFound
}

func newSites(content string) sites {
	return sites{
		{url: "https://mirror1/x", content: []byte(content)},
		{url: "https://mirror2/x", content: []byte(content)},
		{url: "https://origin/x", content: []byte(content)},
	}
}

// reads returns how many reads each site got since the last call.
func (s sites) reads() string {
	var b strings.Builder
	for _, at := range s {
		fmt.Fprintf(&b, "%d ", at.reads)
		at.reads = 0
	}
	return strings.TrimSpace(b.String())
}

func open(t *testing.T, o fetcher.Opener, size int64) fetcher.Blob {
	t.Helper()
	b, err := o.Open(t.Context(), fetcher.Ref{URL: "https://origin/x", Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func read(t *testing.T, b fetcher.Blob) (string, error) {
	t.Helper()
	p := make([]byte, 8)
	n, err := b.ReadAt(t.Context(), p, 1)
	return string(p[:n]), err
}

// twice is a Source of the same file under two URLs.
type twice struct{}

func (twice) Mirrors(_ context.Context, ref fetcher.Ref) ([]fetcher.Ref, error) {
	other := ref
	other.URL = strings.Replace(ref.URL, "file://", "file://localhost", 1)
	return []fetcher.Ref{other, ref}, nil
}

func TestBlob(t *testing.T) {
	fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
		path := filepath.Join(t.TempDir(), "blob")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		ref := fetcher.Ref{URL: "file://" + path, Size: int64(len(content))}
		b, err := mirror.New(twice{}, file.Opener{}, mirror.Options{}).Open(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestBestPlaceIsRead(t *testing.T) {
	s := newSites("0123456789")
	b := open(t, mirror.New(s, s, mirror.Options{}), 10)
	if got, err := read(t, b); got != "12345678" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got := s.reads(); got != "1 0 0" {
		t.Errorf("reads: %s", got)
	}
}

func TestFailingPlaceIsPassedOver(t *testing.T) {
	for _, c := range []struct {
		name      string
		err       error
		otherBlob string // reads for another blob of the same hosts
	}{
		{"temporary, for all blobs", errTemporary, "0 1 0"},
		{"permanent, for this blob", errMissing, "1 1 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSites("0123456789")
				o := mirror.New(s, s, mirror.Options{Penalty: time.Minute})
				b := open(t, o, 10)
				s[0].err = c.err
				for i, want := range []string{"1 1 0", "0 1 0", "0 1 0"} {
					if got, err := read(t, b); got != "12345678" || err != nil {
						t.Errorf("got %q, %v", got, err)
					}
					if got := s.reads(); got != want {
						t.Errorf("read %d: reads %s, want %s", i, got, want)
					}
				}
				if _, err := read(t, open(t, o, 10)); err != nil {
					t.Error(err)
				}
				if got := s.reads(); got != c.otherBlob {
					t.Errorf("another blob: reads %s, want %s", got, c.otherBlob)
				}
				s[0].err = nil
				time.Sleep(2 * time.Minute)
				_, _ = read(t, b)
				_, _ = read(t, b)
				if got := s.reads(); got != "2 0 0" {
					t.Errorf("after the penalty: reads %s, want the first mirror again", got)
				}
			})
		})
	}
}

func TestStillFailingPlaceCostsOneReadPerPenalty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSites("0123456789")
		b := open(t, mirror.New(s, s, mirror.Options{Penalty: time.Minute}), 10)
		s[0].err = errTemporary
		for range 10 {
			for range 10 {
				_, _ = read(t, b)
			}
			time.Sleep(61 * time.Second)
		}
		if got := s.reads(); got != "10 100 0" {
			t.Errorf("reads %s", got)
		}
	})
}

func TestReadGoesOnAtNextPlace(t *testing.T) {
	s := newSites("0123456789")
	b := open(t, mirror.New(s, s, mirror.Options{}), 10)
	s[0].err, s[0].partial = errTemporary, 3
	s[0].content = []byte("0123xxxxxx")
	s[1].content = []byte("xxxx456789")
	if got, err := read(t, b); got != "12345678" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestAllPlacesFail(t *testing.T) {
	for _, c := range []struct {
		name      string
		errs      [3]error
		temporary bool
	}{
		{"origin down", [3]error{errMissing, errMissing, errTemporary}, true},
		{"mirror down", [3]error{errMissing, errTemporary, errMissing}, true},
		{"all missing", [3]error{errMissing, errMissing, errMissing}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSites("0123456789")
			b := open(t, mirror.New(s, s, mirror.Options{}), 10)
			for i, err := range c.errs {
				s[i].err = err
			}
			for range 3 { // penalties do not hide the class
				_, err := read(t, b)
				if errors.Is(err, fetcher.ErrTemporary) != c.temporary || errors.Is(err, fetcher.ErrNotFound) == c.temporary {
					t.Errorf("got %v", err)
				}
			}
			for i := range s {
				s[i].err = nil
			}
			if _, err := read(t, b); err != nil {
				t.Errorf("all is well again, but under penalty: %v", err)
			}
		})
	}
}

func TestCancelSpeaksAgainstNobody(t *testing.T) {
	s := newSites("0123456789")
	b := open(t, mirror.New(s, s, mirror.Options{}), 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	_, _ = read(t, b)
	if got := s.reads(); got != "2 0 0" {
		t.Errorf("reads %s", got)
	}
}

func TestBrokenStreamSpeaksAgainstPlace(t *testing.T) {
	s := newSites("0123456789")
	b := open(t, mirror.New(s, s, mirror.Options{}), 10)
	s[0].err = errTemporary
	r, err := fetcher.ReadRange(t.Context(), b, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v", err)
	}
	s.reads()
	_, _ = read(t, b)
	if got := s.reads(); got != "0 1 0" {
		t.Errorf("reads %s, want the second mirror", got)
	}
}

func TestSizeIsAskedOnce(t *testing.T) {
	s := newSites("0123456789")
	s[0].err = errTemporary
	b := open(t, mirror.New(s, s, mirror.Options{}), 0)
	if b.Size() != 10 {
		t.Errorf("Size() = %d", b.Size())
	}
	for i, at := range s {
		if want := []int{2, 1, 1}[i]; at.opens != want {
			t.Errorf("site %d was opened %d times, want %d", i, at.opens, want)
		}
	}
	if err := b.Close(); err != nil || !s[0].closed || !s[1].closed || !s[2].closed {
		t.Errorf("Close left a blob open, %v", err)
	}
}
