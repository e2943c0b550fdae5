// SPDX-License-Identifier: Apache-2.0

package zfile

import "bytes"

// trailerFlags are those of a trailer that has a digest.
const trailerFlags = flagData | flagSealed | flagDigest

// Locate returns where the ZFile lies of which the last trailer in tail is, the
// last bytes of a blob of size bytes: n bytes from byte off on. What follows the
// trailer, such as the end of a tar, it does not look at. It reports false where
// no trailer is sure to be one: those without a digest are not.
func Locate(tail []byte, size int64) (off, n int64, ok bool) {
	i := bytes.LastIndex(tail, []byte(magic))
	if i < 0 {
		return 0, 0, false
	}
	h, err := parseHeader(tail[i:], 0)
	if err != nil || h.flags&(flagHeader|trailerFlags) != trailerFlags {
		return 0, 0, false
	}
	end := size - int64(len(tail)) + int64(i) + headerSize
	if err := h.checkIndex(0, end); err != nil {
		return 0, 0, false
	}
	n = h.indexLimit() + headerSize
	return end - n, n, true
}
