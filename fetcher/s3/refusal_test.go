// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/s3"
)

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
		if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "s3://"+bucket+"/"+key) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("got %v; want %q and the object in it", err, c.says)
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
			fetchertest.Want(t, open(t, o, 2000), content, 0, 10)
			fetchertest.Want(t, open(t, o, 2000), content, 0, 10)
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
	fetchertest.Want(t, b, content, 1000, 10)
	fetchertest.Want(t, b, content, 0, 10)
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
	fetchertest.Want(t, b, content, 0, 10)
	fetchertest.Want(t, b, content, 1000, 10)
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
