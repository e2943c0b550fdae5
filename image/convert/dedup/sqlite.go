// SPDX-License-Identifier: Apache-2.0

package dedup

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// The keys put chain_id and src_digest before repo: so one index finds a row
// by its repository as well as the rows of all repositories.
const (
	sqliteLayers = `CREATE TABLE IF NOT EXISTS overlaybd_layers (
  host varchar(255) NOT NULL,
  repo varchar(255) NOT NULL,
  chain_id varchar(255) NOT NULL,
  data_digest varchar(255) NOT NULL,
  data_size bigint NOT NULL,
  PRIMARY KEY (host, chain_id, repo)
) WITHOUT ROWID`
	sqliteManifests = `CREATE TABLE IF NOT EXISTS overlaybd_manifests (
  host varchar(255) NOT NULL,
  repo varchar(255) NOT NULL,
  src_digest varchar(255) NOT NULL,
  out_digest varchar(255) NOT NULL,
  data_size bigint NOT NULL,
  mediatype varchar(255) NOT NULL,
  PRIMARY KEY (host, src_digest, mediatype, repo)
) WITHOUT ROWID`
)

// useSQLite makes d the database in the file.
func (d *DB) useSQLite(file string) error {
	if file == "" || strings.ContainsRune(file, 0) {
		return fmt.Errorf("deduplication database: want PATH, sqlite:PATH or mysql:DSN, not the path %q", file)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("deduplication database %s: %w", file, err)
	}
	c, err := sqlite.NewConnector(sqliteURI(path))
	if err != nil {
		return fmt.Errorf("sqlite database %s: %w", path, err)
	}
	d.name = "sqlite database " + path
	d.sql = sql.OpenDB(c)
	d.sql.SetMaxOpenConns(maxConns)
	d.dialect = dialect{
		prepare:   "PRAGMA journal_mode = WAL",
		count:     "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?",
		layers:    sqliteLayers,
		manifests: sqliteManifests,
		duplicate: func(err error) bool { return sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY },
		again:     func(err error) bool { return sqliteCode(err)&0xff == sqlite3.SQLITE_BUSY },
	}
	return nil
}

// maxConns bounds the connections of a process. A row takes less time than a
// conversion by orders of magnitude.
const maxConns = 4

// sqliteURI returns the file's URI for the driver.
func sqliteURI(path string) string {
	u := url.URL{Path: path}
	q := url.Values{
		// In milliseconds. Waiting longer is up to do, which then knows why.
		"_busy_timeout": {"100"},
		// Safe in every crash; a power cut may take back the last rows.
		"_synchronous": {"NORMAL"},
		// The file may be damaged or forged.
		"_defensive": {"1"},
		"_pragma":    {"cell_size_check(1)", "trusted_schema(0)"},
		"_error_rc":  {"1"},
	}
	return "file:" + u.EscapedPath() + "?" + q.Encode()
}

// sqliteCode returns the extended result code, 0 if err is not of SQLite.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}
