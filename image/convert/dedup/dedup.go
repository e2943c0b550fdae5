// SPDX-License-Identifier: Apache-2.0

// Package dedup remembers what was converted, so that it is not converted
// again: which blob a layer became, which manifest a manifest became, and in
// which repository the result lies.
//
// The one thing to know: a key is all that determines the bytes of a result.
// Layer n of an image edits the very blocks that the layers below it wrote, so
// a blob fits only on the blobs that the same convertor, with the same options,
// made of the same layers below. A chain ID names the source layers and nothing
// else. The rest is in the [Tag]: the convertor's generation and its options. A
// row found under a key may therefore be used without asking about other rows,
// and one that holds another digest than a conversion produced is a bug of the
// convertor, reported as [ErrMismatch].
//
// # Tables
//
// They are those of the reference implementation (accelerated-container-image,
// docs/USERSPACE_CONVERTOR.md), so that both convertors can use one MySQL or
// MariaDB database. Text columns are varchar(255), sizes bigint, in bytes.
//
//	overlaybd_layers     host repo chain_id              data_digest data_size
//	overlaybd_manifests  host repo src_digest mediatype  out_digest  data_size
//
// The primary key is what stands left of the result's digest. The tag is
// appended to chain_id and to mediatype, after a semicolon:
//
//	sha256:5f70...;overlaybd-go=1-0c4e35b3a1b0ad4e5f0a1de1c2a3b4d5
//
// The reference looks for values without a tag and never meets ours.
//
// # Rows of the reference
//
// Its rows do not say which version or options made them. [Reference] is the
// tag of those rows. Who uses it states that one version of the reference with
// the wanted options wrote all of them, and keeps to two rules. An image takes
// from them its layers from the lowest up to some layer without a gap, and
// converts all the layers above. Those are recorded, if at all, under a tag
// whose options name the blobs below, because they fit on these alone.
//
// # Databases
//
// SQLite, in one file with write-ahead logging, needs no set-up and serves any
// number of processes of one machine. It does not work on a network file
// system; machines share a MySQL or MariaDB.
package dedup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

var (
	// ErrMismatch says that another result is recorded under the key.
	ErrMismatch = errors.New("another result is recorded")

	// ErrInvalid says that the key's row holds what cannot be right. Deleting
	// it helps.
	ErrInvalid = errors.New("invalid row")
)

// patience is how long an operation may take, waiting for locks of other
// processes included. Rows are looked up and written in milliseconds.
const patience = 10 * time.Second

// maxElsewhere bounds how many repositories are named for one key. A mount
// from one of them suffices; a base layer may be in thousands.
const maxElsewhere = 100

// A DB is a deduplication database. Its methods may be called concurrently.
// None takes longer than ten seconds, and every error names the database,
// never its password. Conversion can go on without the database whatever the
// error, save [ErrMismatch].
type DB struct {
	name      string // for errors
	sql       *sql.DB
	dialect   dialect
	patience  time.Duration
	layers    table
	manifests table
}

// An Entry is a result of a conversion.
type Entry struct {
	Repo   string // repository that has it
	Digest digest.Digest
	Size   int64 // bytes
}

// Open opens the database that dsn names, and creates what is missing of the
// file and the tables:
//
//	PATH or sqlite:PATH                               a file
//	mysql:USER:PASSWORD@tcp(HOST:PORT)/DATABASE       a server
//	mysql:USER:PASSWORD@unix(SOCKET)/DATABASE
func Open(ctx context.Context, dsn string) (*DB, error) {
	d, err := parse(dsn)
	if err != nil {
		return nil, err
	}
	if err := d.do(ctx, "open", d.setUp); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// parse returns the database dsn names, not connected yet.
func parse(dsn string) (*DB, error) {
	d := &DB{
		patience:  patience,
		layers:    newTable("overlaybd_layers", "data_digest", "chain_id"),
		manifests: newTable("overlaybd_manifests", "out_digest", "src_digest", "mediatype"),
	}
	if s, ok := strings.CutPrefix(dsn, "mysql:"); ok {
		return d, d.useMySQL(s)
	}
	return d, d.useSQLite(strings.TrimPrefix(dsn, "sqlite:"))
}

func (d *DB) setUp(ctx context.Context) error {
	if _, err := d.sql.ExecContext(ctx, d.dialect.prepare); err != nil {
		return err
	}
	if err := d.create(ctx, d.layers.name, d.dialect.layers); err != nil {
		return err
	}
	return d.create(ctx, d.manifests.name, d.dialect.manifests)
}

// create creates the table, unless it is there: who may only read and write
// rows need not be allowed to create tables.
func (d *DB) create(ctx context.Context, table, statement string) error {
	var n int
	if err := d.sql.QueryRowContext(ctx, d.dialect.count, table).Scan(&n); err != nil || n > 0 {
		return err
	}
	if _, err := d.sql.ExecContext(ctx, statement); err != nil {
		return fmt.Errorf("create table %s: %w; it can be created beforehand:\n%s", table, err, statement)
	}
	return nil
}

// Close closes the database.
func (d *DB) Close() error {
	return d.sql.Close()
}

// Layer returns what the layer became in the key's repository or, if there is
// no such row, in others of the same host, at most a hundred. Rows of others
// that cannot be right are passed over.
func (d *DB) Layer(ctx context.Context, key LayerKey) (own *Entry, elsewhere []Entry, err error) {
	return d.lookUp(ctx, &d.layers, key)
}

// PutLayer records what the layer became. It does nothing if that is recorded
// already, and says ErrMismatch if something else is.
func (d *DB) PutLayer(ctx context.Context, key LayerKey, blob digest.Digest, size int64) error {
	return d.put(ctx, &d.layers, key, blob, size)
}

// DeleteLayer forgets what the layer became in the key's repository.
func (d *DB) DeleteLayer(ctx context.Context, key LayerKey) error {
	return d.remove(ctx, &d.layers, key)
}

// Manifest returns what the manifest became, as Layer does.
func (d *DB) Manifest(ctx context.Context, key ManifestKey) (own *Entry, elsewhere []Entry, err error) {
	return d.lookUp(ctx, &d.manifests, key)
}

// PutManifest records what the manifest became, as PutLayer does.
func (d *DB) PutManifest(ctx context.Context, key ManifestKey, manifest digest.Digest, size int64) error {
	return d.put(ctx, &d.manifests, key, manifest, size)
}

// DeleteManifest forgets what the manifest became in the key's repository.
func (d *DB) DeleteManifest(ctx context.Context, key ManifestKey) error {
	return d.remove(ctx, &d.manifests, key)
}

// retryDelay spaces attempts after an error that another process's work
// caused.
const retryDelay = 10 * time.Millisecond

// do runs op, again where that helps, until it works or patience ends.
func (d *DB) do(ctx context.Context, what string, op func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d.patience, fmt.Errorf("no success within %v", d.patience))
	defer cancel()
	var obstacle error // what made op worth repeating
	for {
		err := op(ctx)
		if err == nil {
			return nil
		}
		if d.dialect.again(err) || errors.Is(err, errVanished) {
			obstacle = err
		} else if ctx.Err() == nil {
			return fmt.Errorf("%s %s: %w", what, d.name, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s %s: %w", what, d.name, because(context.Cause(ctx), obstacle))
		case <-time.After(retryDelay):
		}
	}
}

// because adds to err what brought it about, if that is known.
func because(err, reason error) error {
	if reason == nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, reason)
}
