// SPDX-License-Identifier: Apache-2.0

package dedup

// A dialect is what SQLite and MySQL do differently.
type dialect struct {
	prepare   string // run once at the beginning
	count     string // counts the tables that have a name
	layers    string // creates the table of layers
	manifests string // creates the table of manifests

	// duplicate tells that a row was not inserted because there is one with
	// its key.
	duplicate func(error) bool

	// again tells that a statement failed for what another connection was
	// doing, and changed nothing.
	again func(error) bool
}
