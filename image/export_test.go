// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"os"

	"github.com/opencontainers/go-digest"
)

// TargetKey returns what the content of a target is kept under, given the path
// of its index.
func TargetKey(target digest.Digest, index string) (digest.Digest, error) {
	f, err := os.Open(index)
	if err != nil {
		return "", err
	}
	x, err := newIndexFile(f)
	if err != nil {
		return "", errors.Join(err, f.Close())
	}
	key, err := x.key(target)
	return key, errors.Join(err, f.Close())
}
