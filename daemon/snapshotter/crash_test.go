// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/daemon/snapshotter"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// crashes are the places around the calls of the block daemon at which a
// snapshotter may end.
var crashes = []struct {
	call  string
	after bool // when the call has had its effect
}{
	{"attach", false},
	{"attach", true},
	{"detach", false},
	{"detach", true},
	{"seal", false},
	{"seal", true},
}

var errCrash = errors.New("crash")

// TestCutShort has an operation end at each of the block daemon's calls, and
// the snapshotter start anew: what was there before is there, or what should be
// after, and a second attempt succeeds. The rig looks for what is left.
func TestCutShort(t *testing.T) {
	for _, c := range crashes {
		when := " before"
		if c.after {
			when = " after"
		}
		for _, op := range []string{"prepare", "commit", "remove"} {
			t.Run(op+when+" "+c.call, func(t *testing.T) {
				need.Loop(t)
				f := newFake(t)
				r := newRig(t, f)
				ref := r.image(f, "app")
				if op != "prepare" {
					r.writeFile(r.prepare("c", ref, snapshotter.LabelWritable, "dir"), "new", "1")
				}
				f.crashAt(c.call, c.after)
				_ = r.attempt(op, ref) // it may not come by there
				r.stop()
				f.hook, f.after = nil, nil
				r.start()
				if err := r.attempt(op, ref); err != nil && !errdefs.IsAlreadyExists(err) && !errdefs.IsNotFound(err) {
					t.Fatalf("second attempt: %v", err)
				}
				r.wantDone(op)
			})
		}
	}
}

// crashAt makes every call of that name fail, as for one who has died.
func (f *fakeBlock) crashAt(call string, after bool) {
	fail := func(c string) error {
		if c == call {
			return errCrash
		}
		return nil
	}
	if after {
		f.after = fail
	} else {
		f.hook = func(_ context.Context, c, _ string) error { return fail(c) }
	}
}

func (r *rig) attempt(op, image string) error {
	switch op {
	case "prepare":
		_, err := r.Prepare(r.t.Context(), "c", image, withLabels([]string{snapshotter.LabelWritable, "dir"}))
		return err
	case "commit":
		return r.Commit(r.t.Context(), "layer", "c")
	default:
		return r.Remove(r.t.Context(), "c")
	}
}

// wantDone expects op to have succeeded.
func (r *rig) wantDone(op string) {
	r.t.Helper()
	switch op {
	case "prepare":
		r.wantFile(r.mounts("c"), "name", "app")
	case "commit":
		r.wantSealed("layer")
		r.wantFile(r.prepare("top", "layer"), "new", "1")
	default:
		if _, err := r.Stat(r.t.Context(), "c"); !errdefs.IsNotFound(err) {
			r.t.Errorf("got %v, want the snapshot gone", err)
		}
	}
}
