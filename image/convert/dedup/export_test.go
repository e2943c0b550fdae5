// SPDX-License-Identifier: Apache-2.0

package dedup

import "time"

// SetPatience bounds operations begun from now on.
func (d *DB) SetPatience(p time.Duration) { d.patience = p }

// Name returns what errors call the database that dsn names.
func Name(dsn string) (string, error) {
	d, err := parse(dsn)
	if err != nil {
		return "", err
	}
	return d.name, d.Close()
}

// Columns returns what a layer's row has in host, chain_id and repo.
func Columns(k LayerKey) ([]any, error) { return k.args() }

// ManifestColumns returns what a manifest's row has in host, src_digest,
// mediatype and repo.
func ManifestColumns(k ManifestKey) ([]any, error) { return k.args() }

// Validate tells whether a row that holds e is believed.
func (e *Entry) Validate() error { return e.validate() }
