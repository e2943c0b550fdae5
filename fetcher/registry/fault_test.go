// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
)

// TestFaults wants each fault to fail one read with ErrTemporary and leave the
// next one well.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault fetchertest.Fault
	}{
		{"429", fetchertest.Fault{Status: 429}},
		{"500", fetchertest.Fault{Status: 500}},
		{"503", fetchertest.Fault{Status: 503}},
		{"reset", fetchertest.Fault{Reset: true}},
		{"short body", fetchertest.Fault{Body: fetchertest.Short, After: 5}},
		{"cut body", fetchertest.Fault{Body: fetchertest.Cut, After: 5}},
		{"other range", fetchertest.Fault{ContentRange: "bytes 0-9/300000"}},
		{"other total", fetchertest.Fault{ContentRange: "bytes 290000-290009/300001"}},
		{"longer range", fetchertest.Fault{ContentRange: "bytes 290000-290010/300000"}},
		{"no range", fetchertest.Fault{ContentRange: "rubbish"}},
		{"200 far from the range", fetchertest.Fault{IgnoreRange: true}},
	} {
		for _, redirect := range []bool{false, true} {
			name := c.name
			if redirect {
				name += " of the redirect host"
			}
			t.Run(name, func(t *testing.T) {
				reg := fetchertest.NewRegistry(t, fetchertest.Options{Redirect: redirect})
				content := fetchertest.Content(300_000, 1)
				b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, content))
				fetchertest.Want(t, b, content, 0, 10)
				f := c.fault
				f.Times = 2 // net/http repeats a request itself when a kept connection is reset
				if !f.Reset {
					f.Times = 1
				}
				reg.Fault(f)
				_, err := b.ReadAt(t.Context(), make([]byte, 10), 290_000)
				noSecrets(t, err)
				if !errors.Is(err, fetcher.ErrTemporary) {
					t.Errorf("got %v, want fetcher.ErrTemporary", err)
				}
				reg.ClearFaults()
				fetchertest.Want(t, b, content, 290_000, 10)
			})
		}
	}
}

func TestPermanentStatus(t *testing.T) {
	for status, class := range map[int]error{
		403: fetcher.ErrUnauthorized, 404: fetcher.ErrNotFound, 410: fetcher.ErrNotFound, 416: fetcher.ErrNotFound,
	} {
		reg := fetchertest.NewRegistry(t, fetchertest.Options{})
		b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, fetchertest.Content(2000, 1)))
		reg.Fault(fetchertest.Fault{Status: status, Times: -1})
		if err := readErr(t, b); !errors.Is(err, class) || errors.Is(err, fetcher.ErrTemporary) {
			t.Errorf("status %d: got %v, want %v", status, err, class)
		}
	}
}

func TestRetryAfterIsKept(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, fetchertest.Content(2000, 1)))
	reg.Fault(fetchertest.Fault{Status: 429, RetryAfter: "7"})
	err := readErr(t, b)
	var ra *fetcher.RetryAfterError
	if !errors.As(err, &ra) || ra.After != 7*time.Second || !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v, want fetcher.ErrTemporary after 7 s", err)
	}
}

func TestIgnoredRangeIsSliced(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	content := fetchertest.Content(100_000, 1)
	b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, content))
	reg.Fault(fetchertest.Fault{IgnoreRange: true, Times: -1})
	fetchertest.Want(t, b, content, 0, 100)
	fetchertest.Want(t, b, content, 50_000, 100)
	fetchertest.Want(t, b, content, 99_900, 100)
}

func TestIgnoredRangeOfAnotherSize(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	ref := reg.AddBlob(repo, fetchertest.Content(100_000, 1))
	ref.Size--
	b := fetchertest.Open(t, newOpener(t, registry.Options{}), ref)
	reg.Fault(fetchertest.Fault{IgnoreRange: true})
	if err := readErr(t, b); !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v, want fetcher.ErrTemporary", err)
	}
}

func TestExpiredRedirectIsResolvedOnce(t *testing.T) {
	for name, expire := range map[string]func(*fetchertest.Registry){
		"403": (*fetchertest.Registry).ExpireRedirects,
		"401": func(r *fetchertest.Registry) { r.Fault(fetchertest.Fault{Status: 401}) },
		"400": func(r *fetchertest.Registry) { r.Fault(fetchertest.Fault{Status: 400}) },
		"404": func(r *fetchertest.Registry) { r.Fault(fetchertest.Fault{Status: 404}) },
		"410": func(r *fetchertest.Registry) { r.Fault(fetchertest.Fault{Status: 410}) },
	} {
		t.Run(name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer, Redirect: true})
			content := fetchertest.Content(2000, 1)
			b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, content))
			fetchertest.Want(t, b, content, 0, 10)
			reg.ResetLog()
			expire(reg)
			fetchertest.Want(t, b, content, 1000, 10)
			if got := endpoints(reg.Log()); got != "storage origin storage" {
				t.Errorf("got requests %q", got)
			}
		})
	}
}

func TestRedirectThatStaysRefused(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Redirect: true})
	b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, fetchertest.Content(2000, 1)))
	reg.Fault(fetchertest.Fault{Status: 403, Times: -1})
	if err := readErr(t, b); !errors.Is(err, fetcher.ErrUnauthorized) {
		t.Errorf("got %v, want fetcher.ErrUnauthorized", err)
	}
}

func TestBadRedirects(t *testing.T) {
	for name, location := range map[string]string{
		"none": "", "other scheme": "file:///etc/passwd", "no host": "http:///x", "unparsable": "http://h/%zz?Signature=s3cr3t",
		"endless": "/v2/again",
	} {
		t.Run(name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, fetchertest.Options{})
			b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, fetchertest.Content(2000, 1)))
			reg.Fault(fetchertest.Fault{Status: 307, Location: location, Times: -1})
			if err := readErr(t, b); err == nil {
				t.Error("got no error")
			}
			if n := len(reg.Log()); n > 6 {
				t.Errorf("followed %d redirects", n-1)
			}
		})
	}
}

func TestDownThenUp(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	content := fetchertest.Content(2000, 1)
	b := fetchertest.Open(t, newOpener(t, registry.Options{}), reg.AddBlob(repo, content))
	fetchertest.Want(t, b, content, 0, 10)
	reg.SetDown(true)
	if err := readErr(t, b); !errors.Is(err, fetcher.ErrTemporary) {
		t.Errorf("got %v, want fetcher.ErrTemporary", err)
	}
	reg.SetDown(false)
	fetchertest.Want(t, b, content, 1000, 10)
}

func TestStall(t *testing.T) {
	for name, fault := range map[string]fetchertest.Fault{
		"before the header": {Hang: true},
		"in the body":       {Body: fetchertest.Stall, After: 4},
	} {
		t.Run(name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, fetchertest.Options{})
			o := newOpener(t, registry.Options{Timeouts: rangeget.Timeouts{HeaderTimeout: 100 * time.Millisecond, IdleTimeout: 100 * time.Millisecond}})
			b := fetchertest.Open(t, o, reg.AddBlob(repo, fetchertest.Content(2000, 1)))
			reg.Fault(fault)
			err := readErr(t, b)
			if !errors.Is(err, fetcher.ErrTemporary) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want fetcher.ErrTemporary alone", err)
			}
		})
	}
}

func TestRedirectWithinRegistryKeepsAuthorization(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Auth: fetchertest.Bearer})
	content := fetchertest.Content(2000, 1)
	ref := reg.AddBlob(repo, content)
	b := fetchertest.Open(t, newOpener(t, registry.Options{}), ref)
	reg.Fault(fetchertest.Fault{Status: 307, Location: ref.URL + "?from=gateway"})
	fetchertest.Want(t, b, content, 0, 10)
	reg.ResetLog()
	fetchertest.Want(t, b, content, 1000, 10)
	if log := reg.Log(); len(log) != 1 || log[0].Query.Get("from") != "gateway" || log[0].Authorization == "" {
		t.Errorf("warm read: got %+v, want one authorized request for where the redirect led", log)
	}
}
