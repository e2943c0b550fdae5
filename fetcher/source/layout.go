// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"

	"github.com/opencontainers/go-digest"
)

// A Layout is a way to name blobs in a bucket or a directory.
type Layout string

// The layouts. Of each, the name of a blob follows from its digest.
const (
	// Distribution is how the registry of that name stores blobs:
	// docker/registry/v2/blobs/sha256/ab/abcd…/data.
	Distribution Layout = "distribution"

	// OCI is an OCI image layout: blobs/sha256/abcd….
	OCI Layout = "oci"

	// Flat has the digest's hex digits alone: abcd….
	Flat Layout = "flat"
)

func (l Layout) valid() bool {
	switch l {
	case Distribution, OCI, Flat:
		return true
	}
	return false
}

// Key returns the name of the blob with a digest, relative and with slashes.
func (l Layout) Key(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("name blob %.100q: %w", string(d), err)
	}
	hex := d.Encoded()
	switch l {
	case Distribution:
		return fmt.Sprintf("docker/registry/v2/blobs/%s/%s/%s/data", d.Algorithm(), hex[:2], hex), nil
	case OCI:
		return fmt.Sprintf("blobs/%s/%s", d.Algorithm(), hex), nil
	case Flat:
		return hex, nil
	}
	return "", fmt.Errorf("name blob %s: layout %q is not known", d, string(l))
}
