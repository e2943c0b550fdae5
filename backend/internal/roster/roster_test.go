// SPDX-License-Identifier: Apache-2.0

package roster_test

import (
	"errors"
	"io/fs"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/overlaybd-go/overlaybd/backend/internal/roster"
)

type device struct{ n int }

func TestIDs(t *testing.T) {
	var r roster.Roster[*device]
	a, b := &device{1}, &device{2}
	made, err := r.Add("x", a)
	if err != nil {
		t.Fatal(err)
	}
	made()
	if _, err := r.Add("x", b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a taken id: %v", err)
	}
	r.Drop("x", b)
	if r.Get("x") != a {
		t.Error("dropped by another device")
	}
	r.Drop("x", a)
	if r.Get("x") != nil {
		t.Error("not dropped")
	}
	if made, err = r.Add("x", b); err != nil {
		t.Fatal(err)
	}
	made()
}

// TestClose: a device that is being made is closed with the others, when it is
// made, and none after it.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r roster.Roster[*device]
		late, early := &device{1}, &device{2}
		madeLate, _ := r.Add("late", late)
		madeEarly, _ := r.Add("early", early)
		madeEarly()
		busy := errors.New("busy")
		var closed sync.Map
		done := make(chan error)
		closeAll := func() {
			done <- r.Close(func(d *device) error {
				closed.Store(d, true)
				return busy
			})
		}
		go closeAll()
		synctest.Wait()
		if _, ok := closed.Load(early); ok {
			t.Error("closed while a device is being made")
		}
		if _, err := r.Add("more", &device{3}); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("added: %v", err)
		}
		madeLate()
		if err := <-done; !errors.Is(err, busy) {
			t.Errorf("Close = %v", err)
		}
		for _, d := range []*device{late, early} {
			if _, ok := closed.LoadAndDelete(d); !ok {
				t.Errorf("device %d was not closed", d.n)
			}
		}
		r.Drop("late", late)
		go closeAll()
		if err := <-done; !errors.Is(err, busy) {
			t.Errorf("Close again = %v", err)
		}
		if _, ok := closed.Load(late); ok {
			t.Error("closed after it was dropped")
		}
	})
}

func TestEach(t *testing.T) {
	var running, most atomic.Int32
	wrong := errors.New("wrong")
	var seen [20]atomic.Bool
	all := make([]int, len(seen))
	for i := range all {
		all[i] = i
	}
	err := roster.Each(all, 3, func(i int) error {
		if n := running.Add(1); n > 3 {
			most.Store(n)
		}
		defer running.Add(-1)
		if seen[i].Swap(true) {
			t.Errorf("%d twice", i)
		}
		if i == 7 {
			return wrong
		}
		return nil
	})
	if !errors.Is(err, wrong) || most.Load() > 0 {
		t.Errorf("error %v, %d at a time", err, most.Load())
	}
	for i := range seen {
		if !seen[i].Load() {
			t.Errorf("%d was left out", i)
		}
	}
	if err := roster.Each(nil, 0, func(int) error { return wrong }); err != nil {
		t.Errorf("of none: %v", err)
	}
}
