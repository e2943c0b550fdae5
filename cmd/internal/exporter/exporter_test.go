// SPDX-License-Identifier: Apache-2.0

package exporter_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/cmd/internal/exporter"
)

// kinds returns a best, a middle and a last kind, of which those named are
// missing.
func kinds(missing string) (all []exporter.Kind) {
	for _, name := range []string{"best", "middle", "last"} {
		all = append(all, exporter.Kind{Name: name, Available: func() error {
			if strings.Contains(missing, name) {
				return errors.New("modprobe " + name)
			}
			return nil
		}})
	}
	return all
}

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		setting, missing string
		want             string
		says             []string // in the reason, or the error
	}{
		{"auto", "", "best", []string{"best can be used"}},
		{"auto", "best", "middle", []string{"not best: modprobe best"}},
		{"auto", "best middle", "last", []string{"not best: modprobe best", "not middle: modprobe middle"}},
		{"auto", "best middle last", "", []string{"modprobe best", "modprobe middle", "modprobe last"}},
		{"last", "", "last", nil},
		{"last", "best", "last", nil},
		{"middle", "middle", "", []string{`"middle"`, "modprobe middle"}},
		{"nbd", "", "", []string{`"nbd"`}},
	} {
		c, err := exporter.Choose(kinds(tc.missing), tc.setting)
		text := c.Reason()
		if err != nil {
			text = err.Error()
		}
		if got := c.Name; got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s without %q: got %q, %v, want %q", tc.setting, tc.missing, got, err, tc.want)
		}
		for _, s := range tc.says {
			if !strings.Contains(text, s) {
				t.Errorf("%s without %q: %q does not say %q", tc.setting, tc.missing, text, s)
			}
		}
	}
}

// TestKinds holds the order against the documentation of "auto".
func TestKinds(t *testing.T) {
	var names []string
	for _, k := range exporter.Kinds() {
		names = append(names, k.Name)
	}
	if got := strings.Join(names, " "); got != "tcmu ublk fuse" {
		t.Errorf("auto tries %s", got)
	}
}
