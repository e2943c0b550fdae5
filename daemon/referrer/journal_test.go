// SPDX-License-Identifier: Apache-2.0

package referrer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/daemon/referrer"
)

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), referrer.JournalName)
	j := referrer.OpenJournal(path)
	a, b := digest.FromString("a"), digest.FromString("b")
	for _, tc := range []struct {
		image, reason string
		manifest      digest.Digest
		first, news   bool
	}{
		{"x", "no answer", a, true, true},
		{"x", "layers of it are here, unpacked", a, false, false},
		{"y", "other", a, false, true},
		{"x", "none", a, true, true},
		{"y", "of another manifest", b, false, true},
	} {
		news, err := j.Add(referrer.Verdict{Image: tc.image, Manifest: tc.manifest, Reason: tc.reason}, tc.first)
		if err != nil || news != tc.news {
			t.Errorf("%+v: got %v, %v", tc, news, err)
		}
	}
	reasons := func() (all []string) {
		t.Helper()
		list, err := referrer.ReadJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list {
			all = append(all, v.Image+": "+v.Reason)
		}
		return all
	}
	if d := cmp.Diff([]string{"x: none", "y: of another manifest"}, reasons()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	j = referrer.OpenJournal(path)
	if err := j.Drop("x"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"y: of another manifest"}, reasons()); d != "" {
		t.Errorf("after x was dropped (-want +got):\n%s", d)
	}
	for i := range 100 {
		if _, err := j.Add(referrer.Verdict{Image: fmt.Sprint(i)}, true); err != nil {
			t.Fatal(err)
		}
	}
	if all := reasons(); len(all) != 50 || all[49] != "99: " {
		t.Errorf("of 100 images it tells of %v", all)
	}
}

// TestJournalDamaged: it is begun anew where a power cut left half of it.
func TestJournalDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), referrer.JournalName)
	if err := os.WriteFile(path, []byte(`[{"image":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := referrer.OpenJournal(path).Add(referrer.Verdict{Image: "x"}, true); err != nil {
		t.Fatal(err)
	}
	if all, err := referrer.ReadJournal(path); err != nil || len(all) != 1 {
		t.Errorf("got %v, %v", all, err)
	}
}
