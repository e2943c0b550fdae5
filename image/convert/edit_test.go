// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestSet(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		path       []string
		want       string // empty: an error
	}{
		{"only member", `{"a":1}`, []string{"a"}, `{"a":["x"]}`},
		{"spaces stay", " {\n\t\"a\" : 1 ,\"b\":[ 2,\n3 ] }\n", []string{"b"}, " {\n\t\"a\" : 1 ,\"b\":[\"x\"] }\n"},
		{"string value", `{"a":"1","b":2}`, []string{"a"}, `{"a":["x"],"b":2}`},
		{"last number", `{"b":0,"a":12.50}`, []string{"a"}, `{"b":0,"a":["x"]}`},
		{"nested", `{"rootfs":{"type":"layers","diff_ids":[]},"z":1e3}`, []string{"rootfs", "diff_ids"}, `{"rootfs":{"type":"layers","diff_ids":["x"]},"z":1e3}`},
		{"other case", `{"RootFS":{"diff_ids":[]}}`, []string{"rootfs", "diff_ids"}, `{"RootFS":{"diff_ids":["x"]}}`},
		{"same key deeper", `{"c":{"a":1},"a":2}`, []string{"a"}, `{"c":{"a":1},"a":["x"]}`},
		{"escaped key", `{"\u0061":1}`, []string{"a"}, `{"\u0061":["x"]}`},
		{"large numbers stay", `{"n":12345678901234567890.000,"a":0}`, []string{"a"}, `{"n":12345678901234567890.000,"a":["x"]}`},
		{"missing", `{"b":1}`, []string{"a"}, ""},
		{"twice", `{"a":1,"A":2}`, []string{"a"}, ""},
		{"not an object", `[1]`, []string{"a"}, ""},
		{"inner not an object", `{"a":1}`, []string{"a", "b"}, ""},
		{"broken", `{"a":1,`, []string{"a"}, ""},
		{"empty", ``, []string{"a"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := set([]byte(tt.text), []string{"x"}, tt.path...)
			if (err != nil) != (tt.want == "") {
				t.Fatalf("error %v", err)
			}
			if string(got) != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// FuzzSet: an edit that succeeds leaves valid JSON whose member has the new
// value, and editing it back to what it was restores every byte.
func FuzzSet(f *testing.F) {
	for _, text := range []string{`{"a":1}`, ` {"b":[{}], "A" : {"a":"\\\""} } `, `{"a":null,"b":"ü"}`, `{"a":1}x`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if !json.Valid(text) {
			_, _ = set(text, 1, "a") // it must not panic
			return
		}
		start, end, err := member(text, "a")
		if err != nil {
			return
		}
		edited, err := set(text, "new", "a")
		if err != nil || !json.Valid(edited) {
			t.Fatalf("%s became %s, %v", text, edited, err)
		}
		back := bytes.Join([][]byte{edited[:start], text[start:end], edited[start+len(`"new"`):]}, nil)
		if !bytes.Equal(back, text) {
			t.Fatalf("%s became %s", text, edited)
		}
	})
}
