// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A key is the raw SHA-256 of a blob. Only what parseKey accepted becomes part
// of a file name.
type key [32]byte

func parseKey(d digest.Digest) (key, error) {
	encoded, ok := strings.CutPrefix(string(d), "sha256:")
	if k, valid := parseHex(encoded); ok && valid {
		return k, nil
	}
	return key{}, fmt.Errorf("digest %q is not of the form sha256:<64 lower-case hex digits>", d)
}

// parseHex reads the 64 lower-case hexadecimal digits of a key.
func parseHex(s string) (k key, ok bool) {
	if len(s) != 2*len(k) || strings.ToLower(s) != s {
		return key{}, false
	}
	_, err := hex.Decode(k[:], []byte(s))
	return k, err == nil
}

func (k key) hex() string    { return hex.EncodeToString(k[:]) }
func (k key) String() string { return "sha256:" + k.hex() }
