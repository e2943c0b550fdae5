// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"testing"

	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

const hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseRef(t *testing.T) {
	for s, want := range map[string]store.Ref{
		"ubuntu":                         {Kind: store.Registry, Location: "docker.io/library/ubuntu", Name: "latest"},
		"localhost:5000/redis:7.2.3":     {Kind: store.Registry, Location: "localhost:5000/redis", Name: "7.2.3"},
		"r.example/a/b@sha256:" + hex:    {Kind: store.Registry, Location: "r.example/a/b", Name: "sha256:" + hex},
		"r.example/a:tag@sha256:" + hex:  {Kind: store.Registry, Location: "r.example/a", Name: "sha256:" + hex},
		"docker://oci:5000/a":            {Kind: store.Registry, Location: "oci:5000/a", Name: "latest"},
		"oci:dir":                        {Kind: store.Layout, Location: "dir"},
		"oci:/a/b:v1":                    {Kind: store.Layout, Location: "/a/b", Name: "v1"},
		"oci:d@i:v1":                     {Kind: store.Layout, Location: "d@i", Name: "v1"},
		"oci:dir@sha256:" + hex:          {Kind: store.Layout, Location: "dir", Name: "sha256:" + hex},
		"oci-archive:x.tar":              {Kind: store.OCIArchive, Location: "x.tar"},
		"docker-archive:x.tar:r.io/a:v1": {Kind: store.DockerArchive, Location: "x.tar", Name: "r.io/a:v1"},
		"oci:":                           {}, // an error, as are these
		"docker-archive::name":           {},
		"":                               {},
		"r.io/UPPER":                     {},
		"r.example/a b":                  {},
		"docker://":                      {},
		"oci:a\x00b":                     {},
	} {
		got, err := store.ParseRef(s)
		if got != want || (err != nil) != (want == store.Ref{}) {
			t.Errorf("ParseRef(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
}

func TestHost(t *testing.T) {
	for s, want := range map[string]string{"localhost:5000/a/b": "localhost:5000", "a": "docker.io", "oci:a/b": ""} {
		if r, err := store.ParseRef(s); err != nil || r.Host() != want {
			t.Errorf("host of %q: %q, %v; want %q", s, r.Host(), err, want)
		}
	}
}

// FuzzParseRef: what is parsed and printed parses to the same.
func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"ubuntu", "h:1/a@sha256:" + hex, "oci:d:t", "oci-archive:f@sha256:" + hex, "docker-archive:f:n:t", "docker://a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := store.ParseRef(s)
		if err != nil {
			return
		}
		text := r.String()
		if r.Kind == store.Registry {
			text = "docker://" + text
		}
		if again, err := store.ParseRef(text); err != nil || again != r {
			t.Errorf("%q is %+v, printed as %q, which is %+v, %v", s, r, text, again, err)
		}
	})
}
