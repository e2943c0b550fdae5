// SPDX-License-Identifier: Apache-2.0

package dedup_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
)

// TestTagIsDurable: rows are found by it in years to come.
func TestTagIsDurable(t *testing.T) {
	got := dedup.NewTag(7, map[string]string{"vsize": "64", "fs": "ext4"})
	if want := dedup.Tag("overlaybd-go=7-bf459897ce95e69a79e243b78b2bd621"); got != want {
		t.Errorf("tag %q, want %q", got, want)
	}
}

// TestTagTellsOptionsApart: neither order nor what the options contain makes
// two sets of options one.
func TestTagTellsOptionsApart(t *testing.T) {
	seen := make(map[dedup.Tag]map[string]string)
	for _, options := range []map[string]string{
		nil, {"": ""}, {"a": "b"}, {"b": "a"}, {"a": "b\"\n\"c\"=\"d"}, {"a": "b", "c": "d"}, {"a=b": ""}, {"a": "=b"}, {"a": ""},
	} {
		tag := dedup.NewTag(1, options)
		if other, ok := seen[tag]; ok {
			t.Errorf("%v and %v have one tag", options, other)
		}
		seen[tag] = options
	}
}

func TestColumns(t *testing.T) {
	key := dedup.LayerKey{Host: host, Repo: "library/redis", ChainID: named("chain", 1), Tag: dedup.Reference}
	wantColumns(t, key, host, named("chain", 1).String(), "library/redis")
	key.Tag = "overlaybd-go=1-00"
	wantColumns(t, key, host, named("chain", 1).String()+";overlaybd-go=1-00", "library/redis")
}

func wantColumns(t *testing.T, key dedup.LayerKey, want ...any) {
	t.Helper()
	got, err := dedup.Columns(key)
	check(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
}

// TestBadKeys: a key that a database would cut or confuse is refused, above
// all one without a tag, which would pass for the reference's.
func TestBadKeys(t *testing.T) {
	db := open(t, sqliteSite.create(t))
	long := strings.Repeat("a", 256)
	for name, edit := range map[string]func(*dedup.LayerKey){
		"no tag":       func(k *dedup.LayerKey) { k.Tag = "" },
		"odd tag":      func(k *dedup.LayerKey) { k.Tag = "a;b" },
		"long tag":     func(k *dedup.LayerKey) { k.Tag = dedup.Tag(long[:200]) },
		"no host":      func(k *dedup.LayerKey) { k.Host = "" },
		"host in caps": func(k *dedup.LayerKey) { k.Host = "Registry" },
		"long host":    func(k *dedup.LayerKey) { k.Host = long },
		"no repo":      func(k *dedup.LayerKey) { k.Repo = "" },
		"repo above":   func(k *dedup.LayerKey) { k.Repo = "../a" },
		"repo blank":   func(k *dedup.LayerKey) { k.Repo = "a " },
		"long repo":    func(k *dedup.LayerKey) { k.Repo = long },
		"no chain ID":  func(k *dedup.LayerKey) { k.ChainID = "" },
		"bad chain ID": func(k *dedup.LayerKey) { k.ChainID = "sha256:00" },
	} {
		key := layerKey("a", 1)
		edit(&key)
		_, _, err := db.Layer(t.Context(), key)
		put := db.PutLayer(t.Context(), key, named("blob", 1), 1)
		if err == nil || put == nil || db.DeleteLayer(t.Context(), key) == nil {
			t.Errorf("%s: %v, %v", name, err, put)
		}
	}
	if err := db.PutLayer(t.Context(), layerKey("a", 1), "sha256:00", 1); err == nil {
		t.Error("bad digest recorded")
	}
	if err := db.PutLayer(t.Context(), layerKey("a", 1), named("blob", 1), -1); err == nil {
		t.Error("negative size recorded")
	}
}

// FuzzName: the password does not get into what is printed, however wrong the
// DSN is.
func FuzzName(f *testing.F) {
	f.Add("mysql:", "root", "secret", "tcp(localhost:3306)/db?timeout=1s")
	f.Add("mysql:", "root", "sec/ret", "unix(/run/s)/db")
	f.Add("mysql://", "root", "secret", "localhost/db")
	f.Add("mysql:", "root", "se(c)/ret", "tcp(h)")
	f.Add("sqlite:", "", "", "/tmp/%zz?mode=ro")
	f.Fuzz(func(t *testing.T, kind, user, password, rest string) {
		name, err := dedup.Name(kind + user + ":" + password + "@" + rest)
		if !strings.HasPrefix(kind, "mysql:") || len(password) < 6 || strings.Contains("mysql database at tcp() unix()"+user+rest, password) {
			return
		}
		if said := fmt.Sprint(name, err); err == nil && strings.Contains(said, password) {
			t.Errorf("%q says the password %q", said, password)
		}
	})
}

// FuzzColumns: what is taken as a key fits the columns, is in letters that
// every database compares alike, and can be told from every other key.
func FuzzColumns(f *testing.F) {
	f.Add("registry:5000", "a/b", named("x", 1).String(), "application/vnd.oci.image.index.v1+json", "overlaybd-go=1-00")
	f.Add("[::1]:5000", "a", named("x", 1).Encoded(), "a", string(dedup.Reference))
	f.Fuzz(func(t *testing.T, host, repo, source, mediaType, tag string) {
		layer := dedup.LayerKey{Host: host, Repo: repo, ChainID: digest.Digest(source), Tag: dedup.Tag(tag)}
		if got, err := dedup.Columns(layer); err == nil {
			wantFuzzed(t, got, host, tagged(source, tag), repo)
		}
		manifest := dedup.ManifestKey{Host: host, Repo: repo, Source: digest.Digest(source), MediaType: mediaType, Tag: dedup.Tag(tag)}
		if got, err := dedup.ManifestColumns(manifest); err == nil {
			wantFuzzed(t, got, host, source, tagged(mediaType, tag), repo)
		}
	})
}

func tagged(s, tag string) string {
	if strings.Contains(s+tag, ";") {
		return "ambiguous"
	}
	return strings.TrimSuffix(s+";"+tag, ";reference")
}

func wantFuzzed(t *testing.T, got []any, want ...string) {
	t.Helper()
	for i, column := range got {
		if column != want[i] || len(want[i]) > 255 || strings.ToLower(want[i]) != want[i] {
			t.Errorf("column %q, want %q in 255 characters of lower case", column, want[i])
		}
		if strings.ContainsFunc(want[i], func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("column %q", want[i])
		}
	}
}

// FuzzEntry: what is believed of a row can be used in a URL.
func FuzzEntry(f *testing.F) {
	f.Add("library/redis", named("x", 1).String(), int64(1))
	f.Add("a/../b", named("x", 1).String(), int64(1))
	f.Add("a?b", "sha256:", int64(-1))
	f.Fuzz(func(t *testing.T, repo, dgst string, size int64) {
		e := dedup.Entry{Repo: repo, Digest: digest.Digest(dgst), Size: size}
		if e.Validate() != nil {
			return
		}
		if _, err := digest.Parse(dgst); err != nil || size < 0 || len(dgst) > 255 {
			t.Errorf("%+v is believed", e)
		}
		odd := func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789._-/", r) }
		if strings.ContainsFunc(repo, odd) || strings.Contains(repo, "..") || strings.Contains("/"+repo+"/", "//") {
			t.Errorf("repository %q is believed", repo)
		}
	})
}
