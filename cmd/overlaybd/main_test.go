// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"overlaybd": main, attacherName: main})
}

// TestScripts runs testdata/*.txtar. They find the golden layers in $GOLDEN,
// and a block daemon of their own at $BLOCKD.
func TestScripts(t *testing.T) {
	golden, _ := need.Golden(t, "zfile/*", "raw/l0.lsmt", "rw/a.*", "stack/l1.obd", "tars/l0.tar", "turbo/*.meta", "neg/*")
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("GOLDEN", golden)
			env.Setenv("BLOCKD", startDaemon(t, &fakeDaemon{devices: map[string]blockapi.Attachment{}}))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"flip": flip, "cut": cut,
		},
	})
}

// flip FILE OFFSET inverts a byte; a negative offset counts from the end.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	edit(ts, args, func(b []byte, off int) []byte {
		b[off] ^= 0xFF
		return b
	})
}

// cut FILE SIZE truncates the file.
func cut(ts *testscript.TestScript, _ bool, args []string) {
	edit(ts, args, func(b []byte, off int) []byte { return b[:off] })
}

func edit(ts *testscript.TestScript, args []string, f func(b []byte, off int) []byte) {
	name := ts.MkAbs(args[0])
	b, err := os.ReadFile(name)
	ts.Check(err)
	off, err := strconv.Atoi(args[1])
	ts.Check(err)
	if off < 0 {
		off += len(b)
	}
	ts.Check(os.WriteFile(name, f(b, off), 0o600))
}

func TestExitStatus(t *testing.T) {
	golden, _ := need.Golden(t, "zfile/l0.lz4.4")
	sound := filepath.Join(golden, "zfile/l0.lz4.4")
	tests := map[string]int{
		"":                       0, // help
		"--help":                 0,
		"--version":              0,
		"verify --help":          0,
		"verify " + sound:        0,
		"verify /none":           1,
		"inspect /none":          1,
		"inspect /dev/null":      1,
		"verify":                 2,
		"verify a b":             2,
		"verify --nope " + sound: 2,
		"nope":                   2,
	}
	for line, want := range tests {
		var out strings.Builder
		if got := report(run(t.Context(), strings.Fields(line), &out, &out), &out); got != want {
			t.Errorf("overlaybd %s: exit status %d, want %d\n%s", line, got, want, &out)
		}
	}
}

// A command whose output cannot be written has failed.
func TestOutputErrors(t *testing.T) {
	golden, _ := need.Golden(t, "zfile/l0.lz4.4")
	for _, args := range [][]string{{"inspect"}, {"inspect", "--json"}, {"verify"}, {"verify", "--json"}} {
		args = append(args, filepath.Join(golden, "zfile/l0.lz4.4"))
		if err := run(t.Context(), args, fullWriter{}, fullWriter{}); !errors.Is(err, errFull) {
			t.Errorf("%v: got %v, want the error of stdout", args, err)
		}
	}
}

type fullWriter struct{}

var errFull = errors.New("no space left")

func (fullWriter) Write([]byte) (int, error) { return 0, errFull }

func TestProgress(t *testing.T) {
	var out strings.Builder
	p := progress{w: &out, name: "x", shown: -1}
	for done := range int64(1000) {
		p.show(done+1, 1000)
	}
	p.clear()
	if n := strings.Count(out.String(), "\r"); n != 102 || !strings.HasSuffix(out.String(), "\rx: 100 % of 1000 bytes\r\x1b[K") {
		t.Errorf("%d lines drawn, the last %q", n, out.String()[out.Len()-30:])
	}
	q := newProgress(&out, "x") // no terminal
	n := out.Len()
	q.show(1, 2)
	q.clear()
	if out.Len() != n {
		t.Errorf("drew %q where there is no terminal", out.String()[n:])
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 bytes", 1023: "1023 bytes", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 1<<63 - 1: "8 EiB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

// Text in layers must not reach the terminal as commands.
func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"plain, ünïcode": "plain, ünïcode",
		"\x1b[2J":        `"\x1b[2J"`,
		"\xff":           `"\xff"`,
		"a\nb":           `"a\nb"`,
	} {
		if got := printable(text); got != want {
			t.Errorf("printable(%q) = %s, want %s", text, got, want)
		}
	}
}
