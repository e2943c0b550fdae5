// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// isUpload and the others tell what a request of a conversion is for.
func isUpload(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/uploads/")
}

func isDownload(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256")
}

func isManifest(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/sha256")
}

func isTag(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/manifests/block")
}

// large is a layer that does not come in one piece.
var large = files(map[string]string{"large": string(fetchertest.Content(4<<20, 9))})

// TestRegistryFails: when a registry gives or takes no more, in the middle of a
// conversion, there is an error that says so, no tag, and nothing left behind.
func TestRegistryFails(t *testing.T) {
	img := makeImage(t, amd64, three[0], large, three[2])
	second := img.Layers[1].Digest.String()
	isSecond := func(r *http.Request) bool { return isDownload(r) && strings.HasSuffix(r.URL.Path, second) }
	for name, tt := range map[string]struct {
		spoil spoiler
		want  []string
	}{
		"download":             {deny(isSecond), []string{"layer " + second, "answered 403"}},
		"middle of a download": {cutThen(isSecond, deny(isSecond)), []string{"layer " + second, "download: at byte ", "answered 403"}},
		"upload":               {deny(isUpload), []string{"layer sha256:", "upload sha256:", "quota exceeded"}},
		"manifest":             {deny(isManifest), []string{"write application/vnd.oci.image.manifest", "quota exceeded"}},
		"tag":                  {deny(isTag), []string{"tag lib/app:block", "quota exceeded"}},
		"altered":              {alter(isSecond), []string{"layer " + second, "decompress gzip"}},
	} {
		t.Run(name, func(t *testing.T) {
			back := e2e.StartRegistry(t)
			back.Push(t, img, "lib/app", "v1")
			host, dir := front(t, back, tt.spoil), t.TempDir()
			_, status, errs := convertor(t.Context(), t, "-r", host+"/lib/app", "-i", "v1", "-o", "block", "--dir", dir)
			if status != exitFailure {
				t.Errorf("status %d", status)
			}
			for _, want := range tt.want {
				if !strings.Contains(errs, want) {
					t.Errorf("error without %q: %s", want, errs)
				}
			}
			checkEmpty(t, dir)
			checkNoTag(t, back)
		})
	}
}

// TestRegistryDown: who names a registry wrongly learns it soon.
func TestRegistryDown(t *testing.T) {
	dir := t.TempDir()
	host := closedPort(t)
	_, status, errs := convertor(t.Context(), t, "-r", host+"/lib/app", "-i", "v1", "-o", "block", "--dir", dir)
	if status != exitFailure || !strings.Contains(errs, "look up lib/app:v1") || !strings.Contains(errs, host+": connect: connection refused") {
		t.Errorf("status %d: %s", status, errs)
	}
	checkEmpty(t, dir)
}

// deny refuses what matches.
func deny(when func(*http.Request) bool) spoiler {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !when(r) {
			next.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusForbidden)
		_, _ = fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"quota exceeded"}]}`)
	}
}

// cutThen breaks off the first answer to what matches, and leaves the others to
// then.
func cutThen(when func(*http.Request) bool, then spoiler) spoiler {
	var cut atomic.Bool
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if when(r) && cut.CompareAndSwap(false, true) {
			next.ServeHTTP(&cutter{w, 1 << 20}, r)
			return
		}
		then(w, r, next)
	}
}

// alter changes a byte of the answers to what matches.
func alter(when func(*http.Request) bool) spoiler {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if when(r) {
			w = &alterer{ResponseWriter: w}
		}
		next.ServeHTTP(w, r)
	}
}

type alterer struct {
	http.ResponseWriter
	done bool
}

func (a *alterer) Write(p []byte) (int, error) {
	if !a.done {
		p, a.done = bytes.Clone(p), true
		p[len(p)/2] ^= 0x10
	}
	return a.ResponseWriter.Write(p)
}

func checkNoTag(t *testing.T, reg *e2e.Registry) {
	t.Helper()
	if _, err := repository(t, reg.Host+"/lib/app:block").Resolve(t.Context()); err == nil {
		t.Error("there is a tag")
	}
}

// TestDatabaseFails: a database that cannot be opened is an error that names
// it, before anything is converted.
func TestDatabaseFails(t *testing.T) {
	reg := e2e.StartRegistry(t)
	reg.Push(t, makeImage(t, amd64, three...), "lib/app", "v1")
	junk := filepath.Join(t.TempDir(), "junk.db")
	spill(t, junk, []byte(strings.Repeat("no database ", 1000)))
	locked := filepath.Join(t.TempDir(), "locked.db")
	lockDatabase(t, locked)
	for name, tt := range map[string]struct {
		args []string
		want []string
	}{
		"locked":      {[]string{"--db-str", locked}, []string{"sqlite database " + locked, "no success within 10s", "locked"}},
		"down":        {[]string{"--db-type", "mysql", "--db-str", "me:secret@tcp(" + closedPort(t) + ")/db"}, []string{"mysql database db at tcp(127.0.0.1:", "refused"}},
		"no database": {[]string{"--db-str", junk}, []string{"sqlite database " + junk, "not a database"}},
		"directory":   {[]string{"--db-str", filepath.Dir(junk)}, []string{"sqlite database " + filepath.Dir(junk), "unable to open"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			args := append([]string{"-r", reg.Host + "/lib/app", "-i", "v1", "-o", "block", "--dir", dir}, tt.args...)
			_, status, errs := convertor(t.Context(), t, args...)
			if status != exitFailure {
				t.Errorf("status %d", status)
			}
			for _, want := range tt.want {
				if !strings.Contains(errs, want) {
					t.Errorf("error without %q: %s", want, errs)
				}
			}
			if strings.Contains(errs, "secret") {
				t.Errorf("the password is printed: %s", errs)
			}
			checkEmpty(t, dir)
			checkNoTag(t, reg)
		})
	}
}

// lockDatabase keeps a SQLite database locked until the test ends.
func lockDatabase(t *testing.T, name string) {
	t.Helper()
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExecContext(t.Context(), "BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
}

// closedPort returns an address that nobody listens at.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
