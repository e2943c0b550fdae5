// SPDX-License-Identifier: Apache-2.0

package dedup_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func TestMariaDB(t *testing.T) {
	server := need.MariaDB(t)
	admin := rawMySQL(t, "mysql:root@unix("+server.Socket+")/mysql")
	exec := func(t testing.TB, statement string) {
		t.Helper()
		if _, err := admin.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	var databases atomic.Int32
	s := site{raw: rawMySQL, create: func(t testing.TB) string {
		name := fmt.Sprintf("d%d", databases.Add(1))
		exec(t, "CREATE DATABASE "+name)
		return fmt.Sprintf("mysql:root@unix(%s)/%s", server.Socket, name)
	}}
	suite(t, s)

	t.Run("tables of the reference", func(t *testing.T) {
		reference := s
		reference.create = func(t testing.TB) string {
			dsn := s.create(t)
			raw := rawMySQL(t, dsn)
			for _, statement := range referenceTables {
				if _, err := raw.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			return dsn
		}
		suite(t, reference)
	})
	t.Run("rights", func(t *testing.T) { testRights(t, s, exec, server.Socket) })
	t.Run("locked", func(t *testing.T) { testLocked(t, s) })
	t.Run("killed", func(t *testing.T) { testServerKilled(t, s, server) })
}

// referenceTables is the schema that the reference documents.
var referenceTables = []string{
	"CREATE TABLE `overlaybd_layers` (`host` varchar(255) NOT NULL, `repo` varchar(255) NOT NULL, " +
		"`chain_id` varchar(255) NOT NULL, `data_digest` varchar(255) NOT NULL, `data_size` bigint(20) NOT NULL, " +
		"PRIMARY KEY (`host`,`repo`,`chain_id`), KEY `index_registry_chainId` (`host`,`chain_id`) USING BTREE) DEFAULT CHARSET=utf8",
	"CREATE TABLE `overlaybd_manifests` (`host` varchar(255) NOT NULL, `repo` varchar(255) NOT NULL, " +
		"`src_digest` varchar(255) NOT NULL, `out_digest` varchar(255) NOT NULL, `data_size` bigint(20) NOT NULL, " +
		"`mediatype` varchar(255) NOT NULL, PRIMARY KEY (`host`,`repo`,`src_digest`, `mediatype`), " +
		"KEY `index_registry_src_digest` (`host`,`src_digest`, `mediatype`) USING BTREE) DEFAULT CHARSET=utf8",
}

func rawMySQL(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	raw, err := sql.Open("mysql", strings.TrimPrefix(dsn, "mysql:"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return raw
}

// testRights: who may not create tables learns what to have created, and
// needs no more once that is done.
func testRights(t *testing.T, s site, exec func(testing.TB, string), socket string) {
	admin := s.create(t)
	name := admin[strings.LastIndexByte(admin, '/')+1:]
	exec(t, "CREATE USER clerk IDENTIFIED BY 'secret'")
	exec(t, "GRANT SELECT, INSERT, DELETE ON "+name+".* TO clerk")
	dsn := fmt.Sprintf("mysql:clerk:secret@unix(%s)/%s", socket, name)

	for range 2 {
		_, err := dedup.Open(t.Context(), dsn)
		if err == nil {
			t.Fatal("Open succeeded without the right to create tables")
		}
		text := err.Error()
		at := strings.Index(text, "CREATE TABLE IF")
		if at < 0 || !strings.Contains(text, name) || strings.Contains(text, "secret") {
			t.Fatalf("Open = %v, want the statement that creates the table", err)
		}
		_, err = rawMySQL(t, admin).ExecContext(t.Context(), text[at:])
		check(t, err)
	}
	db := open(t, dsn)
	check(t, db.PutLayer(t.Context(), layerKey("a", 1), named("blob", 1), 1))
	wantLayer(t, db, layerKey("a", 1), &dedup.Entry{Repo: "a", Digest: named("blob", 1), Size: 1})

	_, err := dedup.Open(t.Context(), strings.Replace(dsn, "secret", "mystery", 1))
	if err == nil || strings.Contains(err.Error(), "mystery") || !strings.Contains(err.Error(), "clerk") {
		t.Errorf("Open with a wrong password = %v", err)
	}
}

func testLocked(t *testing.T, s site) {
	dsn := s.create(t)
	db, impatient := open(t, dsn), open(t, dsn)
	impatient.SetPatience(shortPatience)
	locker, err := rawMySQL(t, dsn).Conn(t.Context())
	check(t, err)
	defer locker.Close()
	_, err = locker.ExecContext(t.Context(), "LOCK TABLES overlaybd_layers WRITE")
	check(t, err)
	err = impatient.PutLayer(t.Context(), layerKey("a", 1), named("blob", 1), 1)
	if err == nil || !strings.Contains(err.Error(), shortPatience.String()) || !strings.Contains(err.Error(), "mysql database") {
		t.Errorf("PutLayer = %v, want an error that names the database after %v", err, shortPatience)
	}
	_, err = locker.ExecContext(t.Context(), "UNLOCK TABLES")
	check(t, err)
	check(t, db.PutLayer(t.Context(), layerKey("a", 2), named("blob", 2), 1))
}

// testServerKilled: a conversion outlives its database, and goes on using it
// when it is back.
func testServerKilled(t *testing.T, s site, server *need.MariaDBServer) {
	dsn := s.create(t)
	db := open(t, dsn)
	key, blob := layerKey("a", 1), named("blob", 1)
	check(t, db.PutLayer(t.Context(), key, blob, 1))
	server.Kill()
	for range 2 {
		_, _, err := db.Layer(t.Context(), key)
		if err == nil || !strings.Contains(err.Error(), server.Socket) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Layer = %v, want an error that names the server at once", err)
		}
		if err := db.PutLayer(t.Context(), key, blob, 1); err == nil {
			t.Error("PutLayer succeeded without a server")
		}
	}
	server.Start()
	wantLayer(t, db, key, &dedup.Entry{Repo: "a", Digest: blob, Size: 1})
	check(t, db.PutLayer(t.Context(), layerKey("a", 2), blob, 1))
}
