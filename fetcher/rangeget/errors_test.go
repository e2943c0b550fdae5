// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"net/http"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"99999999":                      24 * time.Hour,
		"999999999999999999999":         0,
		"soon":                          0,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
	h := http.Header{"Retry-After": {"Fri, 02 Jan 2026 04:04:15 GMT"}, "Date": {"Fri, 02 Jan 2026 04:04:05 GMT"}}
	if got := retryAfter(h, now); got != 10*time.Second {
		t.Errorf("a server whose clock is an hour ahead: got %v, want 10s", got)
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("7", "")
	f.Add("Fri, 02 Jan 2026 04:04:15 GMT", "Fri, 02 Jan 0026 04:04:05 GMT")
	f.Fuzz(func(t *testing.T, text, date string) {
		got := retryAfter(http.Header{"Retry-After": {text}, "Date": {date}}, time.Now())
		if got < 0 || got > 24*time.Hour {
			t.Errorf("%q at %q: got %v", text, date, got)
		}
	})
}
