// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"context"
	"crypto/md5" //nolint:gosec // what S3 makes ETags of
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/s3"
)

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
	fetchertest.Want(t, b, content, 0, 10)
	fetchertest.Want(t, b, content, 1000, 10)
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
	fetchertest.Want(t, open(t, newOpener(t, s.options()), 2000), content, 0, 10)
	if got := s.requests()[0].Header.Get("Authorization"); got != "" {
		t.Errorf("sent %q", got)
	}
	s.answer(refuse(403, "AccessDenied"))
	err := readErr(t, open(t, newOpener(t, s.options()), 2000))
	if !errors.Is(err, fetcher.ErrUnauthorized) || !strings.Contains(err.Error(), "without credentials") {
		t.Errorf("got %v", err)
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
			fetchertest.Want(t, b, content, 0, 10)
			s.answer(answer)
			if err := readErr(t, b); !errors.Is(err, fetcher.ErrTemporary) || errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want fetcher.ErrTemporary", err)
			}
			fetchertest.Want(t, b, content, 1000, 10)
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
			fetchertest.Want(t, b, old, 0, 10)
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
