// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// farAway are options of a node whose registry wants tokens and redirects to
// storage, which both cost requests of their own.
func farAway() nodeOptions {
	o := quick(20 * time.Second)
	o.remote.Timeouts = rangeget.Timeouts{} // nothing hangs that is waited for
	o.registry = fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true}
	return o
}

func (n *node) count(e fetchertest.Endpoint) (count int) {
	for _, q := range n.registry.Log() {
		if q.Endpoint == e {
			count++
		}
	}
	return count
}

// expect expects the layers of v, and what pulling it says of its repository.
func (n *node) expect(v *spec.Volume) {
	n.t.Helper()
	blobs := make([]blockapi.Blob, len(v.Lowers))
	for i, l := range v.Lowers {
		blobs[i] = blockapi.Blob{Digest: l.Digest, Size: l.Size}
	}
	if err := n.Expect(n.t.Context(), v.RepoBlobURL, blobs...); err != nil {
		n.t.Fatal(err)
	}
}

// TestAttachExpected: what was expected, Attach finds without a request, and
// where to read on from too.
func TestAttachExpected(t *testing.T) {
	plain := newNodeOf(t, farAway())
	v, _ := plain.push()
	plain.attach("1", plain.save("1", v))
	opening := plain.count(fetchertest.Storage)

	n := newNodeOf(t, farAway())
	v, content := n.push()
	n.registry.ResetLog()
	if err := n.Expect(t.Context(), v.RepoBlobURL); err != nil {
		t.Fatal(err)
	}
	if err := n.registry.Await(t.Context(), fetchertest.Token, 1); err != nil {
		t.Fatal(err)
	}
	for range 3 { // rpull and the snapshotter both say so
		n.expect(v)
	}
	if err := n.registry.Await(t.Context(), fetchertest.Storage, opening); err != nil {
		t.Fatal(err)
	}
	n.registry.ResetLog()
	a := n.attach("1", n.save("1", v))
	if log := n.registry.Log(); len(log) != 0 {
		t.Errorf("Attach sent %d requests: %+v", len(log), log)
	}
	wantRead(t, a.Path, content)
	if got := n.count(fetchertest.Origin) + n.count(fetchertest.Token); got != 0 {
		t.Errorf("a read on asked the registry %d times where the blob is", got)
	}
	if a = n.attach("1", a.SpecPath); a.FetchedBytes == 0 {
		t.Error("what was fetched for the device is not counted")
	}
}

// TestAttachWhileExpected: an Attach that comes early shares the token, and
// what is on its way.
func TestAttachWhileExpected(t *testing.T) {
	n := newNodeOf(t, farAway())
	v, content := n.push()
	n.registry.ResetLog()
	n.expect(v)
	wantRead(t, n.attach("1", n.save("1", v)).Path, content)
	if got := n.count(fetchertest.Token); got != 1 {
		t.Errorf("%d tokens were asked for, want 1", got)
	}
}

// TestExpectTooEarly: a blob that is not there yet is no worse for having been
// expected.
func TestExpectTooEarly(t *testing.T) {
	n := newNodeOf(t, farAway())
	v, content := n.push()
	late := n.blob
	n = newNodeOf(t, farAway())
	v.RepoBlobURL = n.registry.URL() + "/v2/test/image/blobs"
	n.expect(v)
	if err := n.registry.Await(t.Context(), fetchertest.Token, 1); err != nil {
		t.Fatal(err)
	}
	n.registry.AddBlob("test/image", late)
	wantRead(t, n.attach("1", n.save("1", v)).Path, content)
}

// TestExpectFlood: whatever is expected, and hangs, what is attached is
// served, and the daemon can be closed.
func TestExpectFlood(t *testing.T) {
	n := newNodeOf(t, farAway())
	v, content := n.push()
	path := n.save("1", v)
	n.registry.ResetLog()
	n.registry.Fault(fetchertest.Fault{Hang: true, Times: -1})
	for i := range 2000 {
		flood := *v
		flood.Lowers = []spec.Lower{{Digest: digest.FromBytes([]byte{byte(i), byte(i >> 8)}), Size: 1 << 20}}
		n.expect(&flood)
	}
	if err := n.registry.Await(t.Context(), fetchertest.Origin, 2); err != nil {
		t.Fatal(err)
	}
	n.registry.ClearFaults()
	wantRead(t, n.attach("1", path).Path, content)
}

func TestExpectInvalid(t *testing.T) {
	n := newNode(t)
	good := blockapi.Blob{Digest: digest.FromString("x"), Size: 1}
	for _, tc := range []struct {
		name, repository string
		blobs            []blockapi.Blob
	}{
		{"file", "file:///etc", []blockapi.Blob{good}},
		{"no URL", "", nil},
		{"digest", "http://r/v2/a/blobs", []blockapi.Blob{good, {Digest: "../../etc/passwd", Size: 1}}},
		{"no digest", "http://r/v2/a/blobs", []blockapi.Blob{{Size: 1}}},
		{"no size", "http://r/v2/a/blobs", []blockapi.Blob{{Digest: good.Digest}}},
		{"more blobs than an image has", "http://r/v2/a/blobs", slices.Repeat([]blockapi.Blob{good}, 256)},
		{"a long URL", "http://r/v2/" + strings.Repeat("a", 4096) + "/blobs", nil},
		{"negative size", "http://r/v2/a/blobs", []blockapi.Blob{{Digest: good.Digest, Size: -1}}},
	} {
		err := n.Expect(t.Context(), tc.repository, tc.blobs...)
		if !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want invalid argument", tc.name, err)
		}
	}
}
