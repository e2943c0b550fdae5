// SPDX-License-Identifier: Apache-2.0

package rangeget

import "testing"

func TestParseContentRange(t *testing.T) {
	for text, want := range map[string]contentRange{
		"bytes 0-99/1000":  {0, 100, 1000},
		"bytes 5-5/*":      {5, 1, -1},
		"bytes */1000":     {0, -1, 1000},
		"bytes */0":        {0, -1, 0},
		"bytes 0-999/1000": {0, 1000, 1000},
	} {
		if got, ok := parseContentRange(text); !ok || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", text, got, ok, want)
		}
	}
	for _, text := range []string{
		"", "bytes", "bytes ", "0-99/1000", "bytes 0-99", "bytes 9-5/10", "bytes 0-1000/1000", "bytes -1-5/10", "bytes +0-5/10",
		"bytes 0-5/-1", "bytes 0-9223372036854775807/*", "bytes 1-9223372036854775807/*", "bytes 0 - 5/10", "bytes 0-5-6/10", "Bytes 0-5/10",
	} {
		if got, ok := parseContentRange(text); ok {
			t.Errorf("%q: got %+v", text, got)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/1000", "bytes */1000", "bytes 5-5/*", "bytes 0-9223372036854775807/*"} {
		f.Add(s)
	}
	f.Add("bytes 1-9223372036854775807/*")
	f.Fuzz(func(t *testing.T, s string) {
		c, ok := parseContentRange(s)
		if !ok {
			return
		}
		if c.n == 0 || c.n < -1 || c.off < 0 || c.n > 0 && (c.off+c.n <= 0 || c.total >= 0 && c.off+c.n > c.total) {
			t.Errorf("%q: got %+v", s, c)
		}
	})
}
