// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"context"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/source"
)

const hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// opener is an Opener known by its name.
type opener string

func (opener) Open(context.Context, fetcher.Ref) (fetcher.Blob, error) {
	return nil, fetcher.ErrNotFound
}

func newRules(t *testing.T, rules ...source.Rule) *source.Rules {
	t.Helper()
	rs, err := source.New(rules...)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// urls returns where a blob of a repository may be had.
func urls(rs *source.Rules, host, repo string) (urls []string) {
	for _, p := range rs.Places(fetcher.Ref{URL: "https://" + host + "/v2/" + repo + "/blobs/sha256:" + hex, Size: 7}) {
		urls = append(urls, p.Ref.URL)
	}
	return urls
}

func TestLayouts(t *testing.T) {
	for _, c := range []struct {
		base, want string
		layout     source.Layout
	}{
		{"s3://b", "s3://b/docker/registry/v2/blobs/sha256/e3/" + hex + "/data", source.Distribution},
		{"s3://b/", "s3://b/blobs/sha256/" + hex, source.OCI},
		{"s3://b/a/b/", "s3://b/a/b/" + hex, source.Flat},
		{"https://cdn.example/x?sig=1", "https://cdn.example/x/" + hex + "?sig=1", source.Flat},
		{"s3://b/with%20space", "s3://b/with%20space/" + hex, source.Flat},
	} {
		rs := newRules(t, source.Rule{Match: "*", Base: c.base, Layout: c.layout})
		if diff := cmp.Diff([]string{c.want}, urls(rs, "registry.example", "r")); diff != "" {
			t.Errorf("%s of %s (-want +got):\n%s", c.layout, c.base, diff)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		match, host, repo string
		want              bool
	}{
		{"registry.example", "registry.example", "team/app", true},
		{"registry.example/", "registry.example", "team/app", true},
		{"registry.example", "registry.example:5000", "team/app", false},
		{"registry.example", "aregistry.example", "app", false},
		{"registry.example", "registryxexample", "app", false},
		{"registry.example/team", "registry.example", "team", true},
		{"registry.example/team", "registry.example", "team/app/x", true},
		{"registry.example/team", "registry.example", "teams", false},
		{"registry.example/team/*", "registry.example", "team/app/x", true},
		{"registry.example/team/*", "registry.example", "team", false},
		{"*.example/app", "eu.example", "app", true},
		{"*", "registry.example", "app", true},
		{"docker.io/library/*", "registry-1.docker.io", "library/redis", true},
		{"docker.io/library/*", "docker.io", "library/redis", true},
		{"(a", "(a", "app", false}, // no registry's name, and no pattern
	} {
		rs := newRules(t, source.Rule{Match: c.match, Base: "s3://b", Layout: source.Flat})
		if got := len(urls(rs, c.host, c.repo)) == 1; got != c.want {
			t.Errorf("%s matches %s/%s: %v", c.match, c.host, c.repo, got)
		}
	}
}

// TestPlaces come in the order of the rules, each with its own opener and
// under a name of its own.
func TestPlaces(t *testing.T) {
	rs := newRules(
		t,
		source.Rule{Match: "a/app", Base: "s3://same", Layout: source.Flat, Opener: opener("first")},
		source.Rule{Match: "b", Base: "s3://other", Layout: source.Flat, Opener: opener("other")},
		source.Rule{Match: "a/*", Base: "s3://same", Layout: source.OCI, Opener: opener("second")},
	)
	places := rs.Places(fetcher.Ref{URL: "http://a/v2/app/blobs/sha256:" + hex, Size: 7})
	if len(places) != 2 || places[0].Opener != opener("first") || places[1].Opener != opener("second") || places[0].Name == places[1].Name {
		t.Fatalf("got %+v", places)
	}
	for _, p := range places {
		if p.Ref.Size != 7 || p.Ref.Digest != "sha256:"+hex {
			t.Errorf("got %+v", p.Ref)
		}
	}
	for _, url := range []string{"file:///a/app/blobs/sha256:" + hex, "https://a/app", "https://a/v2/app/blobs/sha256:short", "%"} {
		if places := rs.Places(fetcher.Ref{URL: url}); places != nil {
			t.Errorf("%s: got %+v", url, places)
		}
	}
}

func TestBadRules(t *testing.T) {
	good := source.Rule{Match: "a", Base: "s3://b", Layout: source.Flat}
	for says, change := range map[string]func(*source.Rule){
		"no repository": func(r *source.Rule) { r.Match = "" },
		"no URL":        func(r *source.Rule) { r.Base = "bucket" },
		`layout "tree"`: func(r *source.Rule) { r.Layout = "tree" },
	} {
		bad := good
		change(&bad)
		if _, err := source.New(good, bad); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "source 2") {
			t.Errorf("got %v, want %q about source 2", err, says)
		}
	}
}

// FuzzKey wants keys that stay below their base and tell digests apart.
func FuzzKey(f *testing.F) {
	for _, d := range []string{"sha256:" + hex, "sha256:../../" + hex[6:], "sha512:" + hex + hex, "md5:x", "a/b:c", "sha256:" + strings.ToUpper(hex)} {
		for _, l := range []source.Layout{source.Distribution, source.OCI, source.Flat, "tree"} {
			f.Add(string(l), d)
		}
	}
	f.Fuzz(func(t *testing.T, layout, d string) {
		key, err := source.Layout(layout).Key(digest.Digest(d))
		if err != nil {
			if key != "" {
				t.Errorf("got %q along with an error", key)
			}
			return
		}
		if key != path.Clean(key) || path.IsAbs(key) || strings.HasPrefix(key, "..") || !strings.Contains(key, digest.Digest(d).Encoded()) {
			t.Errorf("%s of %q: %q", layout, d, key)
		}
	})
}

// FuzzPlaces wants every rule that New takes, and every URL, to give places
// below the rule's base or none.
func FuzzPlaces(f *testing.F) {
	f.Add("registry.example/team/*", "s3://bucket/prefix", "https://registry.example/v2/team/app/blobs/sha256:"+hex)
	f.Add("*", "https://cdn.example/%2e%2e/x?sig=1", "http://a/v2/b/blobs/sha256:"+hex)
	f.Add("**[a-\\Q", "s3://b", "https://h/v2/r/blobs/sha256:"+hex+"?ns=x")
	f.Fuzz(func(t *testing.T, match, base, url string) {
		rs, err := source.New(source.Rule{Match: match, Base: base, Layout: source.OCI})
		if err != nil {
			return
		}
		for _, p := range rs.Places(fetcher.Ref{URL: url}) {
			if !strings.Contains(p.Ref.URL, "/blobs/"+string(p.Ref.Digest.Algorithm())+"/"+p.Ref.Digest.Encoded()) {
				t.Errorf("%q of %q at %q: %q", url, match, base, p.Ref.URL)
			}
		}
	})
}
