// SPDX-License-Identifier: Apache-2.0

package dedup_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
)

// A site is where the suite runs: it makes empty databases, and opens them
// without the package.
type site struct {
	create func(t testing.TB) (dsn string)
	raw    func(t testing.TB, dsn string) *sql.DB
}

// suite is what every database must do.
func suite(t *testing.T, s site) {
	t.Run("layers", func(t *testing.T) { testLayers(t, s) })
	t.Run("manifests", func(t *testing.T) { testManifests(t, s) })
	t.Run("tags", func(t *testing.T) { testTags(t, s) })
	t.Run("reference", func(t *testing.T) { testReference(t, s) })
	t.Run("mismatch", func(t *testing.T) { testMismatch(t, s) })
	t.Run("invalid rows", func(t *testing.T) { testInvalidRows(t, s) })
	t.Run("many repositories", func(t *testing.T) { testManyRepositories(t, s) })
	t.Run("canceled", func(t *testing.T) { testCanceled(t, s) })
	t.Run("at once", func(t *testing.T) { testAtOnce(t, s) })
	t.Run("processes", func(t *testing.T) { testProcesses(t, s) })
}

const host = "registry.example:5000"

var ourTag = dedup.NewTag(1, map[string]string{"vsize": "64"})

func layerKey(repo string, n int) dedup.LayerKey {
	return dedup.LayerKey{Host: host, Repo: repo, ChainID: named("chain", n), Tag: ourTag}
}

func named(what string, n int) digest.Digest {
	return digest.FromString(fmt.Sprintf("%s %d", what, n))
}

func open(t testing.TB, dsn string) *dedup.DB {
	t.Helper()
	db, err := dedup.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// wantLayer checks what a look-up of the layer returns.
func wantLayer(t *testing.T, db *dedup.DB, key dedup.LayerKey, own *dedup.Entry, elsewhere ...dedup.Entry) {
	t.Helper()
	gotOwn, gotElsewhere, err := db.Layer(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(own, gotOwn); diff != "" {
		t.Errorf("own (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(elsewhere, gotElsewhere); diff != "" {
		t.Errorf("elsewhere (-want +got):\n%s", diff)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testLayers(t *testing.T, s site) {
	dsn := s.create(t)
	db := open(t, dsn)
	key, blob := layerKey("library/redis", 1), named("blob", 1)
	wantLayer(t, db, key, nil)
	check(t, db.PutLayer(t.Context(), key, blob, 1<<40))
	check(t, db.PutLayer(t.Context(), key, blob, 1<<40)) // as a second convertor does

	entry := dedup.Entry{Repo: "library/redis", Digest: blob, Size: 1 << 40}
	again := open(t, dsn)
	wantLayer(t, again, key, &entry)
	wantLayer(t, again, layerKey("other/redis", 1), nil, entry)
	wantLayer(t, again, layerKey("library/redis", 2), nil)
	abroad := key
	abroad.Host = "other.example"
	wantLayer(t, again, abroad, nil)

	check(t, again.DeleteLayer(t.Context(), key))
	check(t, again.DeleteLayer(t.Context(), key)) // as a second convertor does
	wantLayer(t, db, key, nil)
}

func testManifests(t *testing.T, s site) {
	db := open(t, s.create(t))
	key := dedup.ManifestKey{
		Host: host, Repo: "a", Source: named("manifest", 1),
		MediaType: "application/vnd.oci.image.manifest.v1+json", Tag: ourTag,
	}
	docker := key
	docker.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
	check(t, db.PutManifest(t.Context(), key, named("out", 1), 700))
	check(t, db.PutManifest(t.Context(), docker, named("out", 2), 800))
	check(t, db.PutManifest(t.Context(), docker, named("out", 2), 800))

	wantOCI := dedup.Entry{Repo: "a", Digest: named("out", 1), Size: 700}
	wantDocker := dedup.Entry{Repo: "a", Digest: named("out", 2), Size: 800}
	elsewhere := key
	elsewhere.Repo = "b"
	wantManifest(t, db, key, &wantOCI)
	wantManifest(t, db, docker, &wantDocker)
	wantManifest(t, db, elsewhere, nil, wantOCI)

	check(t, db.DeleteManifest(t.Context(), key))
	wantManifest(t, db, key, nil)
	wantManifest(t, db, docker, &wantDocker)
}

func wantManifest(t *testing.T, db *dedup.DB, key dedup.ManifestKey, own *dedup.Entry, elsewhere ...dedup.Entry) {
	t.Helper()
	gotOwn, gotElsewhere, err := db.Manifest(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(own, gotOwn); diff != "" {
		t.Errorf("own (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(elsewhere, gotElsewhere); diff != "" {
		t.Errorf("elsewhere (-want +got):\n%s", diff)
	}
}

// testTags: a result is not used by who would have made another one.
func testTags(t *testing.T, s site) {
	db := open(t, s.create(t))
	tags := []dedup.Tag{
		dedup.Reference,
		ourTag,
		dedup.NewTag(2, map[string]string{"vsize": "64"}),
		dedup.NewTag(1, map[string]string{"vsize": "256"}),
		dedup.NewTag(1, map[string]string{"vsize": "64", "mkfs": "false"}),
	}
	for i, tag := range tags {
		key := layerKey("a", 1)
		key.Tag = tag
		wantLayer(t, db, key, nil)
		check(t, db.PutLayer(t.Context(), key, named("blob", i), 1))
	}
	for i, tag := range tags {
		key := layerKey("a", 1)
		key.Tag = tag
		wantLayer(t, db, key, &dedup.Entry{Repo: "a", Digest: named("blob", i), Size: 1})
	}
}

// testReference: rows that the reference wrote are found under its tag alone,
// and it finds those written under its tag but not ours.
func testReference(t *testing.T, s site) {
	dsn := s.create(t)
	db, raw := open(t, dsn), s.raw(t, dsn)
	insert(t, raw, "overlaybd_layers", "host, repo, chain_id, data_digest, data_size",
		host, "a", named("chain", 1).String(), named("blob", 1).String(), 10)
	insert(t, raw, "overlaybd_manifests", "host, repo, src_digest, out_digest, data_size, mediatype",
		host, "a", named("manifest", 1).String(), named("out", 1).String(), 20, "application/x")

	key := layerKey("a", 1)
	wantLayer(t, db, key, nil)
	key.Tag = dedup.Reference
	wantLayer(t, db, key, &dedup.Entry{Repo: "a", Digest: named("blob", 1), Size: 10})
	wantManifest(t, db, dedup.ManifestKey{Host: host, Repo: "a", Source: named("manifest", 1), MediaType: "application/x", Tag: dedup.Reference},
		&dedup.Entry{Repo: "a", Digest: named("out", 1), Size: 20})

	check(t, db.PutLayer(t.Context(), layerKey("b", 1), named("blob", 2), 30))
	key.Repo = "c"
	check(t, db.PutLayer(t.Context(), key, named("blob", 1), 10))
	var got []string
	rows, err := raw.QueryContext(t.Context(), "select repo from overlaybd_layers where host=? and chain_id=?", host, named("chain", 1).String())
	check(t, err)
	defer rows.Close()
	for rows.Next() {
		var repo string
		check(t, rows.Scan(&repo))
		got = append(got, repo)
	}
	check(t, rows.Err())
	if diff := cmp.Diff([]string{"a", "c"}, got); diff != "" {
		t.Errorf("repositories the reference finds (-want +got):\n%s", diff)
	}
}

func insert(t testing.TB, raw *sql.DB, table, columns string, values ...any) {
	t.Helper()
	marks := strings.Repeat(", ?", len(values))[2:]
	if _, err := raw.ExecContext(t.Context(), fmt.Sprintf("insert into %s(%s) values(%s)", table, columns, marks), values...); err != nil {
		t.Fatal(err)
	}
}

func testMismatch(t *testing.T, s site) {
	db := open(t, s.create(t))
	key := layerKey("a", 1)
	check(t, db.PutLayer(t.Context(), key, named("blob", 1), 1))
	for _, other := range []dedup.Entry{{Digest: named("blob", 2), Size: 1}, {Digest: named("blob", 1), Size: 2}} {
		err := db.PutLayer(t.Context(), key, other.Digest, other.Size)
		if !errors.Is(err, dedup.ErrMismatch) || !strings.Contains(err.Error(), key.ChainID.String()) {
			t.Errorf("PutLayer(%v) = %v, want ErrMismatch for the layer", other, err)
		}
	}
	wantLayer(t, db, key, &dedup.Entry{Repo: "a", Digest: named("blob", 1), Size: 1})
}

// testInvalidRows: what another writer left is not trusted, and does not stand
// in the way once deleted.
func testInvalidRows(t *testing.T, s site) {
	dsn := s.create(t)
	db, raw := open(t, dsn), s.raw(t, dsn)
	good := named("blob", 1)
	bad := []struct {
		repo, digest string
		size         int64
	}{
		{"a", "", 1},
		{"a", "sha256:../../etc/passwd", 1},
		{"a", "md5:d41d8cd98f00b204e9800998ecf8427e", 1},
		{"a", good.String()[:70], 1},
		{"a", good.String() + "00", 1},
		{"a", strings.ToUpper(good.String()), 1},
		{"a", good.String(), -1},
		{"../a", good.String(), 1},
		{"a?from=b", good.String(), 1},
		{"", good.String(), 1},
	}
	for i, b := range bad {
		key := layerKey("a", i)
		insert(t, raw, "overlaybd_layers", "host, repo, chain_id, data_digest, data_size",
			host, b.repo, key.ChainID.String()+";"+string(key.Tag), b.digest, b.size)
		if b.repo == "a" {
			if _, _, err := db.Layer(t.Context(), key); !errors.Is(err, dedup.ErrInvalid) {
				t.Errorf("row %+v: %v, want ErrInvalid", b, err)
			}
			if err := db.PutLayer(t.Context(), key, good, 1); !errors.Is(err, dedup.ErrInvalid) {
				t.Errorf("put over row %+v: %v, want ErrInvalid", b, err)
			}
		}
		wantLayer(t, db, layerKey("z", i), nil)
		check(t, db.DeleteLayer(t.Context(), key))
		check(t, db.PutLayer(t.Context(), key, good, 1))
		wantLayer(t, db, key, &dedup.Entry{Repo: "a", Digest: good, Size: 1})
	}
}

func testManyRepositories(t *testing.T, s site) {
	db := open(t, s.create(t))
	var want []dedup.Entry
	for i := range 105 {
		repo := fmt.Sprintf("r%03d", i)
		check(t, db.PutLayer(t.Context(), layerKey(repo, 1), named("blob", 1), 1))
		want = append(want, dedup.Entry{Repo: repo, Digest: named("blob", 1), Size: 1})
	}
	wantLayer(t, db, layerKey("z", 1), nil, want[:100]...)
	wantLayer(t, db, layerKey("r104", 1), &want[104])
}

func testCanceled(t *testing.T, s site) {
	db := open(t, s.create(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := db.Layer(ctx, layerKey("a", 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Layer = %v, want canceled", err)
	}
	if err := db.PutLayer(ctx, layerKey("a", 1), named("blob", 1), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("PutLayer = %v, want canceled", err)
	}
	wantLayer(t, db, layerKey("a", 1), nil)
}

// testAtOnce: convertors that record the same layers while others look them up
// and delete them see a whole row or none.
func testAtOnce(t *testing.T, s site) {
	const layers = 8
	dsn := s.create(t)
	var wg sync.WaitGroup
	for range 4 {
		db := open(t, dsn)
		wg.Go(func() {
			for n := range layers {
				if err := useLayer(t.Context(), db, n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	db := open(t, dsn)
	for n := range layers {
		check(t, db.PutLayer(t.Context(), layerKey("a", n), named("blob", n), int64(n)))
		wantLayer(t, db, layerKey("a", n), &dedup.Entry{Repo: "a", Digest: named("blob", n), Size: int64(n)})
	}
}

func useLayer(ctx context.Context, db *dedup.DB, n int) error {
	key := layerKey("a", n)
	err := errors.Join(
		db.PutLayer(ctx, key, named("blob", n), int64(n)),
		db.PutLayer(ctx, layerKey("b", n), named("blob", n), int64(n)))
	own, elsewhere, lookUp := db.Layer(ctx, key)
	err = errors.Join(err, lookUp)
	if own != nil {
		elsewhere = append(elsewhere, *own)
	}
	for _, e := range elsewhere {
		if e.Digest != named("blob", n) || e.Size != int64(n) {
			err = errors.Join(err, fmt.Errorf("layer %d is %v", n, e))
		}
	}
	return errors.Join(err, db.DeleteLayer(ctx, key))
}

// testProcesses: several processes start on an empty database at the same
// time and record the same layers.
func testProcesses(t *testing.T, s site) {
	const layers = 20
	dsn := s.create(t)
	var children []*child
	for range 3 {
		children = append(children, startChild(t, dsn, layers))
	}
	for _, c := range children {
		if n := c.acknowledged(layers + 1); n != layers {
			t.Errorf("process recorded %d layers, want %d: %s", n, layers, c.stderr.String())
		}
	}
	db := open(t, dsn)
	for n := range layers {
		wantLayer(t, db, layerKey("child", n), childEntry(n))
	}
}

// TestOpenRefuses: what is said of a bad name tells how to do it, and never the
// password.
func TestOpenRefuses(t *testing.T) {
	for _, dsn := range []string{
		"", "sqlite:", "sqlite:a\x00b", "mysql:",
		"mysql://root:secret@localhost/db", "mysql:root:secret@tcp(h)", "mysql:root:secret@tcp(h)/",
		"mysql:root:secret@tcp(h)/db?timeout=secret", "mysql:root:secret@nonet(h)/db", "mysql:root:sec/%secret@tcp(h)",
		"mysql:root:s(x)/secret@tcp(h:1)",
	} {
		_, err := dedup.Open(t.Context(), dsn)
		if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "mysql:") {
			t.Errorf("Open(%q) = %v", dsn, err)
		}
	}
}
