// SPDX-License-Identifier: Apache-2.0

package zfile

import "bytes"

// trailerFlags are those of a trailer that has a digest.
const trailerFlags = flagData | flagSealed | flagDigest

// A Place is where in a blob a ZFile lies, in bytes.
type Place struct {
	Off, Size int64
	Index     int64 // where its index begins
}

// Locate returns where the ZFile lies of which the last trailer in tail is, the
// last bytes of a blob of size bytes. What follows the trailer, such as the end
// of a tar, it does not look at. It reports false where no trailer is sure to be
// one: those without a digest are not.
func Locate(tail []byte, size int64) (p Place, ok bool) {
	i := bytes.LastIndex(tail, []byte(magic))
	if i < 0 {
		return Place{}, false
	}
	h, err := parseHeader(tail[i:], 0)
	if err != nil || h.flags&(flagHeader|trailerFlags) != trailerFlags {
		return Place{}, false
	}
	end := size - int64(len(tail)) + int64(i) + headerSize
	if err := h.checkIndex(0, end); err != nil {
		return Place{}, false
	}
	n := h.indexLimit() + headerSize
	return Place{Off: end - n, Size: n, Index: end - n + int64(h.indexOffset)}, true
}
