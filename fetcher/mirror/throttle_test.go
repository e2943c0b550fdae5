// SPDX-License-Identifier: Apache-2.0

package mirror_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/retry"
)

func throttled(after time.Duration) error {
	return &fetcher.RetryAfterError{After: after, Err: errors.New("429")}
}

// TestThrottledPlace is passed over for as long as it asked for, which may be
// less than a penalty or more, but not for as long as it likes.
func TestThrottledPlace(t *testing.T) {
	for after, until := range map[time.Duration]time.Duration{
		3 * time.Second: 3 * time.Second, time.Minute: time.Minute, 24 * time.Hour: 2 * time.Minute,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newSites("0123456789")
			o := mirror.New(s, s, mirror.Options{})
			b := open(t, o, 10)
			s[0].err = throttled(after)
			_, _ = read(t, b)
			s[0].err = nil
			time.Sleep(until - time.Millisecond)
			_, _ = read(t, b)
			if got := s.reads(); got != "1 2 0" {
				t.Errorf("%v: reads %s, want the throttled place passed over", after, got)
			}
			time.Sleep(time.Millisecond)
			_, _ = read(t, b)
			if got := s.reads(); got != "1 0 0" {
				t.Errorf("%v: reads %s, want it asked again", after, got)
			}
			if got := o.Stats(); got.Throttled != 1 || got.Failures != 1 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestAnswerFromBefore: an answer to a request from before a host asked to be
// left alone does not make it be asked again.
func TestAnswerFromBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := newServers(2)
		o := mirror.New(all, all, mirror.Options{})
		r := &racing{t, o, open(t, o, int64(len(content))), all}
		all[0].set(answer{takes: 10 * time.Second})
		early := make(chan error)
		go func() {
			_, err := r.read(t.Context())
			early <- err
		}()
		time.Sleep(time.Second)
		all[0].set(answer{err: throttled(time.Minute)})
		r.want(10*time.Millisecond, "[2 1]")
		if err := <-early; err != nil {
			t.Error(err)
		}
		r.want(10*time.Millisecond, "[0 1]")
		r.end()
	})
}

// TestThrottledEverywhere: no host is asked before it wants to be, though
// there is nobody else; whoever tries again is told when to.
func TestThrottledEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSites("0123456789")
		b := open(t, mirror.New(s, s, mirror.Options{}), 10)
		s[0].err, s[1].err, s[2].err = throttled(90*time.Second), throttled(60*time.Second), throttled(70*time.Second)
		_, _ = read(t, b)
		if got := s.reads(); got != "1 1 1" {
			t.Errorf("reads %s", got)
		}
		time.Sleep(10 * time.Second)
		_, err := read(t, b)
		var again *fetcher.RetryAfterError
		if !errors.As(err, &again) || again.After != 50*time.Second || !errors.Is(err, fetcher.ErrTemporary) {
			t.Errorf("got %v, want to come again in 50 s", err)
		}
		if got := s.reads(); got != "0 0 0" {
			t.Errorf("reads %s, want none", got)
		}
		s[1].err = nil
		time.Sleep(50 * time.Second)
		if got, err := read(t, b); got != "12345678" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

// TestTroubleBesideThrottling: where one host is throttled for long and the
// other is in passing trouble, nobody waits for the first.
func TestTroubleBesideThrottling(t *testing.T) {
	s := newSites("0123456789")
	b := open(t, mirror.New(s, s, mirror.Options{}), 10)
	s[0].err, s[1].err, s[2].err = errMissing, errTemporary, throttled(time.Hour)
	_, err := read(t, b)
	var again *fetcher.RetryAfterError
	if errors.As(err, &again) || !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v, want to come again soon", err)
	}
}

// TestThrottledOrigin: a read waits as long as the only host asks for, where
// that is within the budget of retries, and no longer.
func TestThrottledOrigin(t *testing.T) {
	for after, want := range map[time.Duration]string{2 * time.Second: "[2]", 20 * time.Second: "[1]"} {
		synctest.Test(t, func(t *testing.T) {
			all := newServers(1)
			o := retry.New(mirror.New(all, all, mirror.Options{}), retry.Options{Budget: 5 * time.Second})
			b := open(t, o, int64(len(content)))
			all[0].set(answer{err: throttled(after)})
			time.AfterFunc(time.Second, func() { all[0].set(answer{}) })
			begun := time.Now()
			rc, err := fetcher.ReadRange(t.Context(), b, 0, 5)
			took := time.Since(begun)
			if err == nil {
				err = rc.Close()
			}
			if (err == nil) != (took >= after) || all.asked() != want {
				t.Errorf("told to wait %v: got %v after %v", after, err, took)
			}
		})
	}
}
