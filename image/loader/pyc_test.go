// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// A compiled module and what Python's own dis says about it.
type compiled struct {
	Path    string
	PYC     []byte
	Imports []struct {
		Level int
		Name  string
		From  []string
	}
}

// python runs a Python program.
func runPython(t testing.TB, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Command(t, "python3"), args...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return out
}

// modules compiles modules of Python's standard library.
func modules(t testing.TB) (all []compiled) {
	t.Helper()
	dir := string(runPython(t, "-c", "import os; print(os.path.dirname(os.__file__), end='')"))
	out := runPython(t, "testdata/imports.py", dir, dir+"/json", dir+"/importlib", dir+"/asyncio")
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var c compiled
		err := dec.Decode(&c)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
}

func TestImportsAreThoseOfDis(t *testing.T) {
	all := modules(t)
	if len(all) < 100 {
		t.Fatalf("only %d modules", len(all))
	}
	for _, c := range all {
		_, m, err := parsePyc(c.PYC)
		if err != nil {
			t.Errorf("%s: %v", c.Path, err)
			continue
		}
		var want, got []imported
		for _, i := range c.Imports {
			want = append(want, imported{i.Level, i.Name, append([]string{}, i.From...)})
		}
		for _, i := range m.imports {
			got = append(got, imported{i.level, i.name, append([]string{}, i.from...)})
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(imported{})); diff != "" || m.file != c.Path {
			t.Errorf("%s: file %s, imports (-want +got):\n%s", c.Path, m.file, diff)
		}
	}
}

// pyc returns a file of Python 3.11 with the object given in the marshal format.
func pyc(object string) []byte {
	return append([]byte{0xa7, 0x0d, '\r', '\n', 15: 0}, object...)
}

func TestHostileModules(t *testing.T) {
	for _, tc := range []struct{ name, object string }{
		{"nothing", ""},
		{"no code", "i\x01\x00\x00\x00"},
		{"deep tuples", strings.Repeat(")\x01", 100_000)},
		{"deep code", strings.Repeat("c"+strings.Repeat("\x00", 20), 10_000)},
		{"giant tuple", "(\xff\xff\xff\x7f"},
		{"tuple of negative length", "(\xff\xff\xff\xff"},
		{"giant string", "s\xff\xff\xff\x7fabc"},
		{"negative string", "s\xff\xff\xff\xffabc"},
		{"giant number", "l\xff\xff\xff\x7f"},
		{"least number", "l\x00\x00\x00\x80"},
		{"reference to nothing", "r\x00\x00\x00\x00"},
		{"dictionary without an end", "{NN"},
		{"unknown type", "?"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, m, err := parsePyc(pyc(tc.object)); !errors.Is(err, errFormat) {
				t.Errorf("got %+v, %v", m, err)
			}
		})
	}
}

func TestPythonVersions(t *testing.T) {
	for magic, minor := range map[uint16]int{3413: 8, 3425: 9, 3439: 10, 3495: 11, 3531: 12, 3571: 13, 3394: 0, 3600: 0} {
		p, ok := pythonOf([]byte{byte(magic), byte(magic >> 8), '\r', '\n'})
		if ok != (minor > 0) || p.minor != minor {
			t.Errorf("magic number %d: 3.%d, %v", magic, p.minor, ok)
		}
	}
}

func FuzzParsePyc(f *testing.F) {
	f.Add(pyc("\xe3" + strings.Repeat("\x00", 20) + "s\x02\x00\x00\x00d\x00)\x01Nr\x00\x00\x00\x00"))
	if _, err := exec.LookPath("python3"); err == nil {
		for i, c := range modules(f) {
			if i%20 == 0 && len(c.PYC) < 20_000 {
				f.Add(c.PYC)
			}
		}
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		if len(data) <= maxModule {
			_, _, _ = parsePyc(data)
		}
	})
}
