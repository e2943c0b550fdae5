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

func TestPut(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:              `{"a":"x"}`,
		" { } ":           ` {"a":"x" } `,
		`{ "b" : 1.50 }`:  `{"a":"x", "b" : 1.50 }`,
		`{"b":1,"A": 2 }`: `{"b":1,"A": "x" }`,
		`{"b":{"a":1}}`:   `{"a":"x","b":{"a":1}}`,
		`[]`:              "", // an error, as are these
		`{"a":1,"a":2}`:   "",
		`{"b":`:           "",
		``:                "",
	} {
		got, err := put([]byte(text), "x", "a")
		if string(got) != want || (err != nil) != (want == "") {
			t.Errorf("put into %q: %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestFlattenHistory(t *testing.T) {
	for text, want := range map[string]string{
		`{"x":1}`: `{"x":1}`,
		`{"history":[{"created_by":"a"},{"created_by":"b","empty_layer":true},{"created_by":"c"},{"created_by":"d","empty_layer":true}]}`: `{"history":[{"empty_layer":true,"created_by":"a"},{"created_by":"b","empty_layer":true},{"created_by":"c"},{"created_by":"d","empty_layer":true}]}`,
		`{"history":[]}`:        `{"history":[]}`,
		`{"history":null}`:      `{"history":null}`,
		`{"history":7}`:         "", // an error
		`{"history":[null,{}]}`: "",
	} {
		e := editor{text: []byte(text)}
		e.flattenHistory()
		if (e.err != nil) != (want == "") || e.err == nil && string(e.text) != want {
			t.Errorf("%s: %s, %v; want %s", text, e.text, e.err, want)
		}
	}
}

// FuzzPut: an object stays one and has the new value, whatever it was.
func FuzzPut(f *testing.F) {
	for _, text := range []string{`{"a":1}`, ` { } `, `{"b":[{}]}`, `{`, `{"a":1,"A":2}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		edited, err := put(text, "new", "a")
		if err != nil || !json.Valid(text) {
			return
		}
		start, end, err := member(edited, "a")
		if err != nil || string(edited[start:end]) != `"new"` || !json.Valid(edited) {
			t.Errorf("%q became %q, %v", text, edited, err)
		}
	})
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
