// SPDX-License-Identifier: Apache-2.0

package dedup_test

import (
	"database/sql"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

const benchRows = 10_000

// BenchmarkLayer looks up layers among ten thousand. The ratio is to the same
// query through database/sql alone.
func BenchmarkLayer(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) {
		dsn := sqliteSite.create(b)
		benchLayer(b, dsn, rawSQLite(b, dsn))
	})
	b.Run("mariadb", func(b *testing.B) {
		dsn := "mysql:root@unix(" + need.MariaDB(b).Socket + ")/mysql?interpolateParams=true"
		benchLayer(b, dsn, rawMySQL(b, dsn))
	})
}

func benchLayer(b *testing.B, dsn string, raw *sql.DB) {
	db := open(b, dsn)
	fill(b, db, raw)
	var n int
	var ours, bare time.Duration
	for b.Loop() { // in turn, so that both meet the same weather
		key := layerKey("a", n%benchRows)
		start := time.Now()
		if own, _, err := db.Layer(b.Context(), key); err != nil || own == nil {
			b.Fatal(own, err)
		}
		middle := time.Now()
		lookUpBare(b, raw, key)
		ours += middle.Sub(start)
		bare += time.Since(middle)
		n++
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(n), "ns/op")
	b.ReportMetric(float64(n)/ours.Seconds(), "rows/s")
	b.ReportMetric(float64(ours)/float64(bare), "x-bare")
}

// lookUpBare looks the layer up without the package.
func lookUpBare(b *testing.B, raw *sql.DB, key dedup.LayerKey) {
	var repo, digest string
	var size int64
	err := raw.QueryRowContext(b.Context(), "SELECT repo, data_digest, data_size FROM overlaybd_layers WHERE host = ? AND chain_id = ? AND repo = ?",
		key.Host, key.ChainID.String()+";"+string(key.Tag), key.Repo).Scan(&repo, &digest, &size)
	if err != nil {
		b.Fatal(err)
	}
}

// fill records the rows, all at once.
func fill(b *testing.B, db *dedup.DB, raw *sql.DB) {
	b.Helper()
	tx, err := raw.BeginTx(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	for n := range benchRows {
		columns, err := dedup.Columns(layerKey("a", n))
		if err != nil {
			b.Fatal(err)
		}
		values := append(columns, named("blob", n).String(), n)
		if _, err := tx.ExecContext(b.Context(), "INSERT INTO overlaybd_layers (host, chain_id, repo, data_digest, data_size) VALUES (?, ?, ?, ?, ?)", values...); err != nil {
			b.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		b.Fatal(err)
	}
	if own, _, err := db.Layer(b.Context(), layerKey("a", benchRows-1)); err != nil || own == nil {
		b.Fatal(own, err)
	}
}
