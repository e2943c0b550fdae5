// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// asMain, in the environment, makes the test program the convertor.
const asMain = "CONVERTOR_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// TestInterrupted interrupts the program, as Ctrl-C does, at every kind of
// request that it makes, while the registry has stopped answering. It ends soon,
// leaves no tag and no file, and its status says why.
func TestInterrupted(t *testing.T) {
	img := makeImage(t, amd64, three[0], three[1], large)
	last := img.Layers[2].Digest.String()
	is := func(method, part string) func(*http.Request) bool {
		return func(r *http.Request) bool { return r.Method == method && strings.Contains(r.URL.Path, part) }
	}
	for name, tt := range map[string]struct {
		when   func(*http.Request) bool
		target string // below the test's directory; "" for the registry
	}{
		"lookup":                   {is(http.MethodGet, "/manifests/v1"), ""},
		"download":                 {is(http.MethodGet, last), ""},
		"question for a blob":      {is(http.MethodHead, "/blobs/"), ""},
		"beginning of an upload":   {is(http.MethodPost, "/uploads/"), ""},
		"upload":                   {isUpload, ""},
		"manifest":                 {isManifest, ""},
		"tag":                      {isTag, ""},
		"download to a layout":     {is(http.MethodGet, last), "oci:out/image:block"},
		"download to an archive":   {is(http.MethodGet, last), "oci-archive:image.tar"},
		"lookup before a database": {is(http.MethodGet, "/manifests/v1"), "database"},
	} {
		t.Run(name, func(t *testing.T) {
			back := e2e.StartRegistry(t)
			back.Push(t, img, "lib/app", "v1")
			spoil, hung := hang(tt.when)
			host, dir := front(t, back, spoil), t.TempDir()
			args := []string{"--source", host + "/lib/app:v1", "--target"}
			switch kind, path, _ := strings.Cut(tt.target, ":"); {
			case tt.target == "":
				args = append(args, host+"/lib/app:block")
			case path == "":
				args = append(args, host+"/lib/app:block", "--db-str", filepath.Join(t.TempDir(), "db"))
			default:
				args = append(args, kind+":"+filepath.Join(dir, path))
			}
			status, errs := interrupt(t, hung, dir, args...)
			if status != exitInterrupted || !strings.HasSuffix(errs, "convertor: interrupted\n") {
				t.Errorf("status %d: %s", status, errs)
			}
			checkEmpty(t, dir)
			checkNoTag(t, back)
		})
	}
}

// hang answers neither the first request that matches nor any after it; hung is
// closed then. Of what is downloaded, half arrives before.
func hang(when func(*http.Request) bool) (_ spoiler, hung <-chan struct{}) {
	var once atomic.Bool
	reached := make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		first := when(r) && once.CompareAndSwap(false, true)
		switch {
		case !once.Load():
			next.ServeHTTP(w, r)
			return
		case first && isDownload(r):
			next.ServeHTTP(&stopper{w, 2 << 20, func() { close(reached); <-r.Context().Done() }}, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if first {
			close(reached)
		}
		<-r.Context().Done()
	}, reached
}

// A stopper calls then when so much is written, and fails after that.
type stopper struct {
	http.ResponseWriter
	left int
	then func()
}

func (s *stopper) Write(p []byte) (int, error) {
	n := min(len(p), s.left)
	s.left -= n
	if _, err := s.ResponseWriter.Write(p[:n]); err != nil || n == len(p) {
		return n, err
	}
	if err := http.NewResponseController(s.ResponseWriter).Flush(); err != nil {
		return n, err
	}
	s.then()
	panic(http.ErrAbortHandler)
}

// interrupt runs the program, as users do, with its work directory below dir,
// interrupts it once hung is closed, and returns its exit status and what it
// wrote to stderr. If that does not end it, it is killed.
func interrupt(t *testing.T, hung <-chan struct{}, dir string, args ...string) (status int, stderr string) {
	t.Helper()
	tmp := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], append(args, "--dir", filepath.Join(dir, "work"), "--vsize", "1")...)
	cmd.Env = append(os.Environ(), asMain+"=1", "TMPDIR="+tmp)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its status says it
	}()
	select {
	case <-hung:
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Errorf("interrupt: %v", err)
		}
	case <-ended:
	}
	<-ended
	checkEmpty(t, tmp)
	return cmd.ProcessState.ExitCode(), errs.String()
}
