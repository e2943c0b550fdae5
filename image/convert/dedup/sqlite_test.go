// SPDX-License-Identifier: Apache-2.0

package dedup_test

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
)

var sqliteSite = site{
	create: func(t testing.TB) string { return filepath.Join(t.TempDir(), "dedup.db") },
	raw:    rawSQLite,
}

func rawSQLite(t testing.TB, file string) *sql.DB {
	t.Helper()
	raw, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return raw
}

func TestSQLite(t *testing.T) { suite(t, sqliteSite) }

func TestSQLitePaths(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"plain", "a b", "50%", "what?mode=memory", "a#b", "mysql", ":memory:", "é"} {
		db := open(t, "sqlite:"+name)
		check(t, db.PutLayer(t.Context(), layerKey("a", 1), named("blob", 1), 1))
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSQLiteNoDatabase(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	check(t, os.WriteFile(text, []byte(strings.Repeat("This is no database.\n", 1000)), 0o600))
	for _, path := range []string{text, dir, filepath.Join(dir, "missing", "db")} {
		_, err := dedup.Open(t.Context(), path)
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Open(%s) = %v, want an error that names it", path, err)
		}
	}
}

// TestSQLiteTypes: SQLite holds any type and length in any column.
func TestSQLiteTypes(t *testing.T) {
	dsn := sqliteSite.create(t)
	db, raw := open(t, dsn), rawSQLite(t, dsn)
	good := named("blob", 1).String()
	for i, row := range [][2]any{
		{good, "many"},
		{good, 1.5},
		{good, uint64(math.MaxInt64)}, // right
		{12, 1},
		{[]byte{0xff, 0}, 1},
		{good + strings.Repeat("0", 10<<20), 1},
	} {
		key := layerKey("a", i)
		insert(t, raw, "overlaybd_layers", "host, repo, chain_id, data_digest, data_size",
			host, "a", key.ChainID.String()+";"+string(key.Tag), row[0], row[1])
		own, _, err := db.Layer(t.Context(), key)
		valid := i == 2
		if valid != (err == nil) || !valid && !errors.Is(err, dedup.ErrInvalid) || valid != (own != nil) {
			t.Errorf("row %d: %v, %v", i, own, err)
		}
		if err != nil && len(err.Error()) > 2000 {
			t.Errorf("row %d: an error of %d bytes", i, len(err.Error()))
		}
	}
}

// shortPatience is for what is expected to fail. It holds some of SQLite's
// attempts.
const shortPatience = time.Second

// TestSQLiteLocked: a process that keeps the file locked does not hold up a
// conversion for longer than our patience, and its end is noticed.
func TestSQLiteLocked(t *testing.T) {
	dsn := sqliteSite.create(t)
	db, impatient := open(t, dsn), open(t, dsn)
	impatient.SetPatience(shortPatience)
	locker, err := rawSQLite(t, dsn).Conn(t.Context())
	check(t, err)
	defer locker.Close()
	exec := func(statement string) {
		t.Helper()
		_, err := locker.ExecContext(t.Context(), statement)
		check(t, err)
	}

	exec("BEGIN IMMEDIATE")
	err = impatient.PutLayer(t.Context(), layerKey("a", 1), named("blob", 1), 1)
	for _, words := range []string{dsn, "locked", shortPatience.String()} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("PutLayer = %v, want an error with %q", err, words)
		}
	}
	wantLayer(t, db, layerKey("a", 1), nil) // readers do not wait for writers

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.PutLayer(ctx, layerKey("a", 1), named("blob", 1), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("PutLayer = %v, want canceled", err)
	}

	exec("ROLLBACK")
	check(t, db.PutLayer(t.Context(), layerKey("a", 1), named("blob", 1), 1))
}

// TestSQLiteWaits: a lock that is given up in time goes unnoticed.
func TestSQLiteWaits(t *testing.T) {
	dsn := sqliteSite.create(t)
	db := open(t, dsn)
	tx, err := rawSQLite(t, dsn).BeginTx(t.Context(), nil)
	check(t, err)
	_, err = tx.ExecContext(t.Context(), "DELETE FROM overlaybd_layers")
	check(t, err)
	put := make(chan error)
	go func() { put <- db.PutLayer(t.Context(), layerKey("a", 1), named("blob", 1), 1) }()
	check(t, tx.Commit())
	check(t, <-put)
}

// TestSQLiteKilled: after kill -9 at any time while rows are inserted,
// what was acknowledged is there, and nothing is half there.
func TestSQLiteKilled(t *testing.T) {
	dsn := sqliteSite.create(t)
	acknowledged := 0
	for _, more := range []int{1, 10, 30} {
		c := startChild(t, dsn, math.MaxInt32)
		if n := c.acknowledged(acknowledged + more); n < acknowledged+more {
			t.Fatalf("child ended: %s", c.stderr.String())
		}
		c.kill()
		acknowledged += more

		db := open(t, dsn)
		for n := range acknowledged {
			wantLayer(t, db, layerKey("child", n), childEntry(n))
		}
		var verdict string
		check(t, rawSQLite(t, dsn).QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&verdict))
		if verdict != "ok" {
			t.Errorf("after %d rows: %s", acknowledged, verdict)
		}
	}
}
