// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"bytes"
	"crypto/md5" //nolint:gosec // what S3 makes ETags of
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/fetcher/s3"
)

const (
	bucket = "layers"
	key    = "some where/a+b%2F.blob"
)

var objectURL = "s3://" + bucket + "/" + strings.NewReplacer(" ", "%20", "%", "%25").Replace(key)

// server is a bucket with one object. Its answers can be scripted.
type server struct {
	*httptest.Server

	mu      sync.Mutex // guards what follows
	content []byte
	script  []http.HandlerFunc // answers to the next requests; nil for a good one
	always  http.HandlerFunc   // answers every other request, unless nil
	log     []*http.Request
}

func newServer(t *testing.T, content []byte) *server {
	t.Helper()
	isolate(t)
	s := &server{content: content}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// isolate keeps what the machine has of credentials away from the test.
func isolate(t *testing.T) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_REGION": "",
		"AWS_DEFAULT_REGION": "", "AWS_ENDPOINT_URL": "", "AWS_CA_BUNDLE": "",
	} {
		t.Setenv(name, value)
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.log = append(s.log, r)
	answer, content := s.always, s.content
	if len(s.script) > 0 {
		answer, s.script = s.script[0], s.script[1:]
	}
	s.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
	case r.URL.Path != "/"+bucket+"/"+key:
		refuse(404, "NoSuchKey")(w, r)
	default:
		good(content)(w, r)
	}
}

// good answers as S3 does for an object.
func good(content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		sum := md5.Sum(content) //nolint:gosec // as above
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
		if len(content) == 0 && r.Header.Get("Range") != "" {
			refuse(416, "InvalidRange")(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1000, 0), bytes.NewReader(content))
	}
}

func refuse(status int, code string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>so it is</Message></Error>", code)
	}
}

// answer scripts the answers to the next requests.
func (s *server) answer(script ...http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = script
}

func (s *server) answerAlways(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.always = h
}

// requests returns the requests since it was last called.
func (s *server) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

// keys writes a credentials file and returns its path.
func keys(t *testing.T, access, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "credentials")
	rewrite(t, path, access, secret)
	return path
}

func rewrite(t *testing.T, path, access, secret string) {
	t.Helper()
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", access, secret)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *server) options() s3.Options {
	return s3.Options{Endpoint: s.URL, PathStyle: true, Anonymous: true, Timeouts: rangeget.Timeouts{HeaderTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second}}
}

func newOpener(t *testing.T, opts s3.Options) *s3.Opener {
	t.Helper()
	o := s3.New(opts)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

func open(t *testing.T, o fetcher.Opener, size int) fetcher.Blob {
	t.Helper()
	return fetchertest.Open(t, o, fetcher.Ref{URL: objectURL, Size: int64(size)})
}

func readErr(t *testing.T, b fetcher.Blob) error {
	t.Helper()
	n, err := b.ReadAt(t.Context(), make([]byte, 10), 1000)
	if err == nil || n == 10 {
		t.Fatalf("got %d bytes and %v, want an error", n, err)
	}
	return err
}
