// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ctr runs the command with args against a containerd that is not there.
func ctr(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := newApp()
	app.Writer, app.ErrWriter = &out, &out
	err := app.Run(t.Context(), append([]string{"ctr", "--address", filepath.Join(t.TempDir(), "none")}, args...))
	return out.String(), err
}

func TestCommands(t *testing.T) {
	var names []string
	for _, c := range newApp().Commands {
		names = append(names, c.Name)
	}
	for _, want := range []string{"rpull", "obdconv", "run", "images", "tasks", "snapshots", "content"} {
		if !slices.Contains(names, want) {
			t.Errorf("no command %s in %v", want, names)
		}
	}
}

func TestFlagsRefused(t *testing.T) {
	for want, args := range map[string][]string{
		"reference of one image": {"rpull"},
		"one image":              {"rpull", "a", "b"},
		"source and a target":    {"obdconv", "a"},
		"--vsize 0":              {"obdconv", "--vsize", "0", "a", "b"},
		"--bs 5":                 {"obdconv", "--bs", "5", "a", "b"},
		"--algorithm":            {"obdconv", "--algorithm", "brotli", "a", "b"},
		"--platform":             {"obdconv", "--platform", "a/b/c/d", "a", "b"},
		"tlscert and --tlskey":   {"rpull", "--tlscert", "x", "a"},
		"cannot access socket":   {"obdconv", "--algorithm", "zstd", "--bs", "64", "--platform", "linux/arm64", "a", "b"},
		"cannot access socket /": {"rpull", "--plain-http", "--platform", "linux/arm64", "--download-blobs", "a"},
	} {
		t.Run(want, func(t *testing.T) {
			out, err := ctr(t, args...)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q\n%s", err, want, out)
			}
		})
	}
}
