// SPDX-License-Identifier: Apache-2.0

package dedup

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// The tables that both convertors use: the reference's columns, keys and names
// of indexes. With four bytes per character the keys would exceed what InnoDB
// takes.
const (
	mysqlLayers = `CREATE TABLE IF NOT EXISTS overlaybd_layers (
  host varchar(255) NOT NULL,
  repo varchar(255) NOT NULL,
  chain_id varchar(255) NOT NULL,
  data_digest varchar(255) NOT NULL,
  data_size bigint NOT NULL,
  PRIMARY KEY (host, repo, chain_id),
  KEY index_registry_chainId (host, chain_id)
) DEFAULT CHARSET=utf8mb3`
	mysqlManifests = `CREATE TABLE IF NOT EXISTS overlaybd_manifests (
  host varchar(255) NOT NULL,
  repo varchar(255) NOT NULL,
  src_digest varchar(255) NOT NULL,
  out_digest varchar(255) NOT NULL,
  data_size bigint NOT NULL,
  mediatype varchar(255) NOT NULL,
  PRIMARY KEY (host, repo, src_digest, mediatype),
  KEY index_registry_src_digest (host, src_digest, mediatype)
) DEFAULT CHARSET=utf8mb3`
)

// Numbers of the server's errors.
const (
	mysqlDuplicate   = 1062
	mysqlLockTimeout = 1205
	mysqlDeadlock    = 1213
)

// errMySQLDSN stands for every fault of a DSN: what the driver says of one may
// quote the password.
var errMySQLDSN = errors.New("deduplication database: want mysql:USER:PASSWORD@tcp(HOST:PORT)/DATABASE or mysql:USER:PASSWORD@unix(SOCKET)/DATABASE, and parameters that the Go driver knows")

// useMySQL makes d the database of a server that the driver's dsn names.
func (d *DB) useMySQL(dsn string) error {
	cfg, err := mysqlConfig(dsn)
	if err != nil {
		return err
	}
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		return errMySQLDSN
	}
	d.name = fmt.Sprintf("mysql database %s at %s(%s)", cfg.DBName, cfg.Net, cfg.Addr)
	d.sql = sql.OpenDB(c)
	d.sql.SetMaxOpenConns(maxConns)
	d.dialect = dialect{
		prepare:   "DO 0",
		count:     "SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?",
		layers:    mysqlLayers,
		manifests: mysqlManifests,
		duplicate: func(err error) bool { return mysqlNumber(err) == mysqlDuplicate },
		again: func(err error) bool {
			n := mysqlNumber(err)
			return n == mysqlDeadlock || n == mysqlLockTimeout
		},
	}
	return nil
}

// mysqlConfig parses the dsn. A DSN with a part missing can parse in a way that
// takes the password for the address or the database, which we print.
func mysqlConfig(dsn string) (*mysql.Config, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil || cfg.DBName == "" || strings.ContainsAny(cfg.DBName, ":@()/") ||
		!slices.Contains([]string{"tcp", "unix"}, cfg.Net) || strings.ContainsAny(cfg.Addr, "@()") {
		return nil, errMySQLDSN
	}
	cfg.Logger = &mysql.NopLogger{}
	cfg.InterpolateParams = true // one round trip, not three
	cfg.MultiStatements = false
	cfg.AllowAllFiles = false
	return cfg, nil
}

// mysqlNumber returns the number of the server's error, 0 if err is none.
func mysqlNumber(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}
