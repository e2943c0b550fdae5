// SPDX-License-Identifier: Apache-2.0

package mirror_test

import (
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
)

// elsewhere returns options under which the first two of s are places outside
// the registry, of one URL, and a registry of the last.
func elsewhere(s sites) (mirror.Options, sites) {
	s[1].url = s[0].url
	return mirror.Options{Penalty: time.Hour, Elsewhere: func(ref fetcher.Ref) []mirror.Place {
		at := fetcher.Ref{URL: s[0].url, Size: ref.Size}
		return []mirror.Place{{Name: "1", Ref: at, Opener: s[:1]}, {Name: "2", Ref: at, Opener: s[1:2]}}
	}}, s[2:]
}

// TestElsewhereComesFirst: places outside the registry are tried in order and
// the registry last; each is penalised by itself, though their URLs are one.
func TestElsewhereComesFirst(t *testing.T) {
	s := newSites("0123456789")
	opts, reg := elsewhere(s)
	o := mirror.New(reg, reg, opts)
	b := open(t, o, 10)
	for i, c := range []struct {
		errs  [2]error
		reads string
	}{
		{[2]error{}, "1 0 0"},
		{[2]error{errTemporary, nil}, "1 1 0"},
		{[2]error{errTemporary, nil}, "0 1 0"},
		{[2]error{errTemporary, errMissing}, "0 1 1"},
		{[2]error{}, "0 0 1"},
	} {
		s[0].err, s[1].err = c.errs[0], c.errs[1]
		if got, err := read(t, b); got != "12345678" || err != nil {
			t.Errorf("read %d: got %q, %v", i, got, err)
		}
		if got := s.reads(); got != c.reads {
			t.Errorf("read %d: reads %s, want %s", i, got, c.reads)
		}
	}
	if _, err := read(t, open(t, o, 10)); err != nil {
		t.Error(err)
	}
	if got := s.reads(); got != "0 1 0" {
		t.Errorf("another blob: reads %s, want the second, which only lacks the first blob", got)
	}
}

func TestSizeIsTakenElsewhere(t *testing.T) {
	s := newSites("0123456789")
	opts, reg := elsewhere(s)
	s[0].err, s[2].err = errMissing, errTemporary
	if b := open(t, mirror.New(reg, reg, opts), 0); b.Size() != 10 {
		t.Errorf("Size() = %d", b.Size())
	}
}

// TestDropPassesOverWhoGaveWrongBytes: whoever finds the checksum wrong gets
// the bytes of the next place, up to the origin, which stays.
func TestDropPassesOverWhoGaveWrongBytes(t *testing.T) {
	s := newSites("0123456789")
	opts, reg := elsewhere(s)
	b := open(t, mirror.New(reg, reg, opts), 10)
	for _, want := range []string{"1 0 0", "0 1 0", "0 0 1", "0 0 1"} {
		if got, err := read(t, b); got != "12345678" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if got := s.reads(); got != want {
			t.Errorf("reads %s, want %s", got, want)
		}
		if err := fetcher.Drop(t.Context(), b, 0, 10); err != nil {
			t.Error(err)
		}
	}
}

// TestDropFindsTheLiar: a place that others came before, and that is passed
// over in the meantime, is still the one that is not asked again.
func TestDropFindsTheLiar(t *testing.T) {
	s := newSites("0123456789")
	b := open(t, mirror.New(s, s, mirror.Options{}), 10)
	s[0].err, s[1].content = errTemporary, []byte("xxxxxxxxxx")
	_, _ = read(t, b)
	s[1].err = errTemporary
	_, _ = read(t, b)
	if got := s.reads(); got != "1 2 1" {
		t.Fatalf("reads %s", got)
	}
	s[0].err, s[1].err = nil, nil
	if err := fetcher.Drop(t.Context(), b, 2, 3); err != nil {
		t.Error(err)
	}
	s[2].err = errTemporary
	if got, err := read(t, b); got != "12345678" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got := s.reads(); got != "1 0 1" {
		t.Errorf("reads %s, want nothing of the second", got)
	}
}
