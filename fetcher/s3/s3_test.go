// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what S3 makes ETags of
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
	return s3.Options{Endpoint: s.URL, PathStyle: true, Anonymous: true, HeaderTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second}
}

func newOpener(t *testing.T, opts s3.Options) *s3.Opener {
	t.Helper()
	o := s3.New(opts)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

func open(t *testing.T, o fetcher.Opener, size int) fetcher.Blob {
	t.Helper()
	b, err := o.Open(t.Context(), fetcher.Ref{URL: objectURL, Size: int64(size)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func want(t *testing.T, b fetcher.Blob, content []byte, off int) {
	t.Helper()
	p := make([]byte, 10)
	if _, err := b.ReadAt(t.Context(), p, int64(off)); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p, content[off:off+10]) {
		t.Fatalf("read at %d: got %x, %v; want %x", off, p, err, content[off:off+10])
	}
}

func readErr(t *testing.T, b fetcher.Blob) error {
	t.Helper()
	n, err := b.ReadAt(t.Context(), make([]byte, 10), 1000)
	if err == nil || n == 10 {
		t.Fatalf("got %d bytes and %v, want an error", n, err)
	}
	return err
}

func TestBlob(t *testing.T) {
	for _, known := range []bool{true, false} {
		fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
			size := 0
			if known {
				size = len(content)
			}
			return open(t, newOpener(t, newServer(t, content).options()), size)
		})
	}
}

func TestOpenSendsNothing(t *testing.T) {
	s := newServer(t, make([]byte, 2000))
	open(t, newOpener(t, s.options()), 2000)
	if got := s.requests(); len(got) != 0 {
		t.Errorf("%d requests to open an object of known size", len(got))
	}
	if b := open(t, newOpener(t, s.options()), 0); b.Size() != 2000 || len(s.requests()) != 1 {
		t.Errorf("size %d, or not one request for it", b.Size())
	}
}

// TestRequest: what a read asks for, and that a warm one is one request.
func TestRequest(t *testing.T) {
	content := fetchertest.Content(2000, 1)
	s := newServer(t, content)
	opts := s.options()
	opts.Anonymous, opts.RequesterPays, opts.CredentialsFile = false, true, keys(t, "AK", "SK")
	b := open(t, newOpener(t, opts), 2000)
	want(t, b, content, 0)
	want(t, b, content, 1000)
	log := s.requests()
	if len(log) != 2 {
		t.Fatalf("%d requests for two reads", len(log))
	}
	first, second := log[0].Header, log[1].Header
	if first.Get("Range") != "bytes=0-9" || second.Get("Range") != "bytes=1000-1009" {
		t.Errorf("asked for %q and %q", first.Get("Range"), second.Get("Range"))
	}
	if first.Get("If-Match") != "" || !strings.HasPrefix(second.Get("If-Match"), `"`) {
		t.Errorf("If-Match %q, then %q; want none, then a tag", first.Get("If-Match"), second.Get("If-Match"))
	}
	if first.Get("X-Amz-Request-Payer") != "requester" || !strings.Contains(first.Get("Authorization"), "Credential=AK/") {
		t.Errorf("got headers %v", first)
	}
}

func TestAnonymous(t *testing.T) {
	content := fetchertest.Content(2000, 1)
	s := newServer(t, content)
	t.Setenv("AWS_ACCESS_KEY_ID", "AK")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "SK")
	want(t, open(t, newOpener(t, s.options()), 2000), content, 0)
	if got := s.requests()[0].Header.Get("Authorization"); got != "" {
		t.Errorf("sent %q", got)
	}
	s.answer(refuse(403, "AccessDenied"))
	err := readErr(t, open(t, newOpener(t, s.options()), 2000))
	if !errors.Is(err, fetcher.ErrUnauthorized) || !strings.Contains(err.Error(), "without credentials") {
		t.Errorf("got %v", err)
	}
}

// TestRefusals: how what S3 says is classed, and what a person is told.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		answer http.HandlerFunc
		class  error  // nil for none of the three
		says   string // in the error
	}{
		{refuse(404, "NoSuchKey"), fetcher.ErrNotFound, "NoSuchKey"},
		{refuse(404, "NoSuchBucket"), fetcher.ErrNotFound, "NoSuchBucket"},
		{refuse(403, "AccessDenied"), fetcher.ErrUnauthorized, "AccessDenied"},
		{refuse(400, "ExpiredToken"), fetcher.ErrUnauthorized, "renew them"},
		{refuse(403, "InvalidAccessKeyId"), fetcher.ErrUnauthorized, "check the profile"},
		{refuse(403, "SignatureDoesNotMatch"), fetcher.ErrUnauthorized, "secret key"},
		{refuse(403, "RequestTimeTooSkewed"), fetcher.ErrUnauthorized, "clock of this machine"},
		{refuse(403, "InvalidObjectState"), nil, "restore it first"},
		{refuse(503, "SlowDown"), fetcher.ErrTemporary, "SlowDown"},
		{refuse(429, "TooManyRequests"), fetcher.ErrTemporary, "429"},
		{refuse(400, "RequestTimeout"), fetcher.ErrTemporary, "RequestTimeout"},
		{refuse(500, "InternalError"), fetcher.ErrTemporary, "InternalError"},
		{refuse(301, "PermanentRedirect"), nil, "another region"},
		{refuse(307, "TemporaryRedirect", "Location", "http://127.0.0.1:1/"), nil, "another region"},
		{refuse(412, "PreconditionFailed"), nil, "changed"},
		{func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = io.WriteString(w, "<html>")
		}, fetcher.ErrTemporary, "502"},
		{func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, fetcher.ErrNotFound, "404"},
	} {
		s := newServer(t, fetchertest.Content(2000, 1))
		opts := s.options()
		opts.Anonymous, opts.CredentialsFile = false, keys(t, "AK", "SECRET")
		s.answerAlways(c.answer)
		b := open(t, newOpener(t, opts), 2000)
		err := readErr(t, b)
		for _, class := range []error{fetcher.ErrNotFound, fetcher.ErrUnauthorized, fetcher.ErrTemporary} {
			if errors.Is(err, class) != (class == c.class) { //nolint:errorlint // the table's own value
				t.Errorf("got %v; want class %v", err, c.class)
			}
		}
		if !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("got %v; want %q in it", err, c.says)
		}
		if n := len(s.requests()); n > 2 {
			t.Errorf("%q: %d requests", c.says, n)
		}
	}
}

func TestRetryAfterIsKept(t *testing.T) {
	s := newServer(t, fetchertest.Content(2000, 1))
	s.answer(refuse(503, "SlowDown", "Retry-After", "7"))
	var after *fetcher.RetryAfterError
	if err := readErr(t, open(t, newOpener(t, s.options()), 2000)); !errors.As(err, &after) || after.After != 7*time.Second {
		t.Errorf("got %v, want to come again in 7 s", err)
	}
}

// TestOtherRegion: the region that a refusal names is tried once, and kept for
// the bucket.
func TestOtherRegion(t *testing.T) {
	content := fetchertest.Content(2000, 1)
	for name, answer := range map[string]http.HandlerFunc{
		"301": refuse(301, "PermanentRedirect", "X-Amz-Bucket-Region", "eu-west-9"),
		"400": refuse(400, "AuthorizationHeaderMalformed", "X-Amz-Bucket-Region", "eu-west-9"),
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, content)
			opts := s.options()
			opts.Anonymous, opts.CredentialsFile = false, keys(t, "AK", "SK")
			o := newOpener(t, opts)
			s.answer(answer)
			want(t, open(t, o, 2000), content, 0)
			want(t, open(t, o, 2000), content, 0)
			var scopes []string
			for _, r := range s.requests() {
				scopes = append(scopes, strings.Split(r.Header.Get("Authorization"), "/")[2])
			}
			if got := strings.Join(scopes, ","); got != "us-east-1,eu-west-9,eu-west-9" {
				t.Errorf("asked in regions %s", got)
			}
			s.answerAlways(answer)
			if err := readErr(t, open(t, newOpener(t, opts), 2000)); errors.Is(err, fetcher.ErrTemporary) {
				t.Errorf("got %v", err)
			}
			if n := len(s.requests()); n != 2 {
				t.Errorf("a bucket that is nowhere cost %d requests, want 2", n)
			}
		})
	}
}

// TestHostileRegion would be part of a host name.
func TestHostileRegion(t *testing.T) {
	s := newServer(t, fetchertest.Content(2000, 1))
	s.answerAlways(refuse(301, "PermanentRedirect", "X-Amz-Bucket-Region", "x@evil.example/"))
	if err := readErr(t, open(t, newOpener(t, s.options()), 2000)); !strings.Contains(err.Error(), "another region") {
		t.Errorf("got %v", err)
	}
	if n := len(s.requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestExpiredCredentials are read anew once: from a file that has been
// replaced in the meantime they are good.
func TestExpiredCredentials(t *testing.T) {
	content := fetchertest.Content(2000, 1)
	s := newServer(t, content)
	opts := s.options()
	opts.Anonymous, opts.CredentialsFile = false, keys(t, "OLD", "SK")
	b := open(t, newOpener(t, opts), 2000)
	s.answerAlways(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Authorization"), "Credential=OLD/") {
			refuse(400, "ExpiredToken")(w, r)
			return
		}
		good(content)(w, r)
	})
	if err := readErr(t, b); !errors.Is(err, fetcher.ErrUnauthorized) || !strings.Contains(err.Error(), "renew") {
		t.Errorf("got %v", err)
	}
	if n := len(s.requests()); n != 2 {
		t.Errorf("%d requests, want one more with the credentials read anew", n)
	}
	rewrite(t, opts.CredentialsFile, "NEW", "SK")
	want(t, b, content, 1000)
	want(t, b, content, 0)
	if n := len(s.requests()); n != 3 {
		t.Errorf("%d requests, want one with the old key and two with the new", n)
	}
}

// TestClockSkew: a server whose clock is an hour ahead tells the time when it
// refuses, and the next request is dated by it.
func TestClockSkew(t *testing.T) {
	content := fetchertest.Content(2000, 1)
	s := newServer(t, content)
	opts := s.options()
	opts.Anonymous, opts.CredentialsFile = false, keys(t, "AK", "SK")
	s.answerAlways(func(w http.ResponseWriter, r *http.Request) {
		now := time.Now().Add(time.Hour)
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
		at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil || now.Sub(at).Abs() > 15*time.Minute {
			refuse(403, "RequestTimeTooSkewed")(w, r)
			return
		}
		good(content)(w, r)
	})
	b := open(t, newOpener(t, opts), 2000)
	want(t, b, content, 0)
	want(t, b, content, 1000)
	if n := len(s.requests()); n != 3 {
		t.Errorf("%d requests for two reads, want 3", n)
	}
}

func TestMissingCredentials(t *testing.T) {
	s := newServer(t, fetchertest.Content(2000, 1))
	for name, change := range map[string]func(*s3.Options){
		"none":            func(*s3.Options) {},
		"unknown profile": func(o *s3.Options) { o.Profile = "nobody" },
		"no file":         func(o *s3.Options) { o.CredentialsFile = "/nowhere/credentials" },
	} {
		opts := s.options()
		opts.Anonymous = false
		change(&opts)
		if err := readErr(t, open(t, newOpener(t, opts), 2000)); !errors.Is(err, fetcher.ErrUnauthorized) || errors.Is(err, fetcher.ErrTemporary) {
			t.Errorf("%s: got %v, want fetcher.ErrUnauthorized", name, err)
		}
	}
	if n := len(s.requests()); n != 0 {
		t.Errorf("%d requests without credentials", n)
	}
}

// TestFaults wants each answer to fail one read with ErrTemporary and leave the
// next one well.
func TestFaults(t *testing.T) {
	content := fetchertest.Content(300_000, 1)
	head := func(w http.ResponseWriter, r string, n int) {
		sum := md5.Sum(content) //nolint:gosec // as above
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
		w.Header().Set("Content-Range", r)
		w.Header().Set("Content-Length", fmt.Sprint(n))
		w.WriteHeader(http.StatusPartialContent)
	}
	hang := func(r *http.Request) { <-r.Context().Done() }
	for name, answer := range map[string]http.HandlerFunc{
		"other range": func(w http.ResponseWriter, _ *http.Request) {
			head(w, "bytes 0-9/300000", 10)
			_, _ = w.Write(content[:10])
		},
		"no range": func(w http.ResponseWriter, _ *http.Request) { head(w, "rubbish", 10); _, _ = w.Write(content[:10]) },
		"short body": func(w http.ResponseWriter, _ *http.Request) {
			head(w, "bytes 1000-1009/300000", 5)
			_, _ = w.Write(content[:5])
		},
		"long body": func(w http.ResponseWriter, _ *http.Request) {
			head(w, "bytes 1000-1009/300000", 11)
			_, _ = w.Write(content[:11])
		},
		"cut body": func(w http.ResponseWriter, _ *http.Request) {
			head(w, "bytes 1000-1009/300000", 10)
			_, _ = w.Write(content[:5])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"hang": func(_ http.ResponseWriter, r *http.Request) { hang(r) },
		"stall": func(w http.ResponseWriter, r *http.Request) {
			head(w, "bytes 1000-1009/300000", 10)
			_ = http.NewResponseController(w).Flush()
			hang(r)
		},
		"encoded": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			head(w, "bytes 1000-1009/300000", 10)
			_, _ = w.Write(content[:10])
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, content)
			opts := s.options()
			opts.HeaderTimeout, opts.IdleTimeout = 200*time.Millisecond, 200*time.Millisecond
			b := open(t, newOpener(t, opts), len(content))
			want(t, b, content, 0)
			s.answer(answer)
			if err := readErr(t, b); !errors.Is(err, fetcher.ErrTemporary) || errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want fetcher.ErrTemporary", err)
			}
			want(t, b, content, 1000)
		})
	}
}

// TestReplacedObject: a read of another object than before is an error,
// whether the server looks at If-Match or not.
func TestReplacedObject(t *testing.T) {
	old, other := fetchertest.Content(50_000, 1), fetchertest.Content(50_000, 2)
	for name, replaced := range map[string]http.HandlerFunc{
		"condition kept": good(other),
		"condition ignored": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Match")
			good(other)(w, r)
		},
		"truncated": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Match")
			good(old[:40_000])(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, old)
			b := open(t, newOpener(t, s.options()), len(old))
			want(t, b, old, 0)
			s.answerAlways(replaced)
			for range 2 {
				if err := readErr(t, b); errors.Is(err, fetcher.ErrTemporary) || !strings.Contains(err.Error(), "changed") {
					t.Errorf("got %v, want a word about the change", err)
				}
			}
		})
	}
}

func TestSizeOfAnotherObject(t *testing.T) {
	s := newServer(t, fetchertest.Content(5000, 1))
	err := readErr(t, open(t, newOpener(t, s.options()), 6000))
	if errors.Is(err, fetcher.ErrTemporary) || !strings.Contains(err.Error(), "has 5000 bytes under that name, not 6000") {
		t.Errorf("got %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	s := newServer(t, nil)
	s.Close()
	if err := readErr(t, open(t, newOpener(t, s.options()), 2000)); !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v, want fetcher.ErrTemporary", err)
	}
}

func FuzzURL(f *testing.F) {
	for _, s := range []string{objectURL, "s3://b/k", "s3:///k", "s3://b", "https://b/k", "s3://b/../k", "s3://u:p@b/k", "s3://b/k?x", "s3://b/%zz"} {
		f.Add(s)
	}
	o := s3.New(s3.Options{})
	f.Fuzz(func(t *testing.T, url string) {
		b, err := o.Open(t.Context(), fetcher.Ref{URL: url, Size: 1}) // sends nothing
		if (b == nil) == (err == nil) {
			t.Fatalf("%q: got %v and %v", url, b, err)
		}
		if err == nil {
			_ = b.Close()
			if !strings.HasPrefix(strings.ToLower(url), "s3://") {
				t.Errorf("%q was opened", url)
			}
		}
	})
}
