// SPDX-License-Identifier: Apache-2.0

package dedup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A table is one of the two tables, with its statements. Each statement takes
// host, identifiers and repository, in this order, and insert the result after
// them.
type table struct {
	name                     string
	own, others, insert, del string
}

func newTable(name, result string, ids ...string) table {
	// A row is foreign input: what is longer than its column should be is cut
	// here, and then found invalid.
	columns := fmt.Sprintf("substr(repo, 1, %d), substr(%s, 1, %d), data_size", maxColumn+1, result, maxColumn+1)
	key := "host = ? AND " + strings.Join(ids, " = ? AND ") + " = ?"
	return table{
		name:   name,
		own:    fmt.Sprintf("SELECT %s FROM %s WHERE %s AND repo = ?", columns, name, key),
		others: fmt.Sprintf("SELECT %s FROM %s WHERE %s AND repo <> ? ORDER BY repo LIMIT %d", columns, name, key, maxElsewhere),
		insert: fmt.Sprintf("INSERT INTO %s (host, %s, repo, %s, data_size) VALUES (?%s)",
			name, strings.Join(ids, ", "), result, strings.Repeat(", ?", len(ids)+3)),
		del: fmt.Sprintf("DELETE FROM %s WHERE %s AND repo = ?", name, key),
	}
}

// lookUp returns the row of k or, if there is none, the rows of other
// repositories.
func (d *DB) lookUp(ctx context.Context, t *table, k key) (own *Entry, elsewhere []Entry, err error) {
	args, err := k.args()
	if err != nil {
		return nil, nil, err
	}
	err = d.do(ctx, "look up "+k.String()+" in", func(ctx context.Context) (err error) {
		if own, err = d.own(ctx, t, args); err != nil || own != nil {
			return err
		}
		elsewhere, err = d.others(ctx, t, args)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return own, elsewhere, nil
}

// own returns the row of a key, nil if there is none.
func (d *DB) own(ctx context.Context, t *table, args []any) (*Entry, error) {
	entries, invalid, err := d.query(ctx, t.own, args)
	if err := errors.Join(invalid, err); err != nil || len(entries) == 0 {
		return nil, err
	}
	return &entries[0], nil
}

func (d *DB) others(ctx context.Context, t *table, args []any) ([]Entry, error) {
	entries, _, err := d.query(ctx, t.others, args)
	return entries, err
}

// query returns the rows that can be right, and what is wrong with the others.
func (d *DB) query(ctx context.Context, statement string, args []any) (entries []Entry, invalid, err error) {
	rows, err := d.sql.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = rows.Close() }() // Err says it all
	for rows.Next() {
		e, err := scan(rows)
		if err != nil {
			invalid = err
			continue
		}
		entries = append(entries, e)
	}
	return entries, invalid, rows.Err()
}

// scan reads a row, or says ErrInvalid.
func scan(rows *sql.Rows) (Entry, error) {
	var e Entry
	if err := rows.Scan(&e.Repo, &e.Digest, &e.Size); err != nil {
		return e, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := e.validate(); err != nil {
		return e, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return e, nil
}

func (e *Entry) validate() error {
	if !validRepo(e.Repo) {
		return fmt.Errorf("repository %q", e.Repo)
	}
	if err := validDigest(e.Digest); err != nil {
		return err
	}
	if e.Size < 0 {
		return fmt.Errorf("size %d", e.Size)
	}
	return nil
}

// errVanished says that a row that was in the way is gone; again helps.
var errVanished = errors.New("row comes and goes")

func (d *DB) put(ctx context.Context, t *table, k key, result digest.Digest, size int64) error {
	args, err := k.args()
	if err != nil {
		return err
	}
	e := Entry{Repo: k.repo(), Digest: result, Size: size}
	if err := e.validate(); err != nil {
		return fmt.Errorf("record %s: %w", k, err)
	}
	return d.do(ctx, "record "+k.String()+" in", func(ctx context.Context) error {
		_, err := d.sql.ExecContext(ctx, t.insert, append(args, result.String(), size)...)
		if err != nil && d.dialect.duplicate(err) {
			return d.compare(ctx, t, args, e)
		}
		return err
	})
}

// compare holds want against the row that is there already.
func (d *DB) compare(ctx context.Context, t *table, args []any, want Entry) error {
	got, err := d.own(ctx, t, args)
	switch {
	case err != nil:
		return err
	case got == nil:
		return errVanished
	case got.Digest != want.Digest || got.Size != want.Size:
		return fmt.Errorf("%w: %s of %d bytes, not %s of %d", ErrMismatch, got.Digest, got.Size, want.Digest, want.Size)
	}
	return nil
}

func (d *DB) remove(ctx context.Context, t *table, k key) error {
	args, err := k.args()
	if err != nil {
		return err
	}
	return d.do(ctx, "delete "+k.String()+" from", func(ctx context.Context) error {
		_, err := d.sql.ExecContext(ctx, t.del, args...)
		return err
	})
}
