// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"io"
	"strings"
)

// A tape is a tar that knows how much of it was read. A tar reader reads no
// more than it has to, so that when it has read a header, the body begins there.
type tape struct {
	r     io.Reader
	pos   int64  // of the next byte that Read returns
	ahead []byte // read from r already
	err   error  // of r, behind ahead
}

func (t *tape) Read(p []byte) (n int, err error) {
	switch {
	case len(t.ahead) > 0:
		n = copy(p, t.ahead)
		t.ahead = t.ahead[n:]
	case t.err != nil:
		return 0, t.err
	default:
		n, err = t.r.Read(p)
	}
	t.pos += int64(n)
	return n, err
}

// peek returns the next n bytes without going on, fewer where r ends or fails.
func (t *tape) peek(n int) []byte {
	if more := n - len(t.ahead); more > 0 && t.err == nil {
		have := len(t.ahead)
		t.ahead = append(t.ahead, make([]byte, more)...)
		more, t.err = fill(t.r, t.ahead[have:])
		t.ahead = t.ahead[:have+more]
	}
	return t.ahead[:min(n, len(t.ahead))]
}

// isRun reports whether the body of h is the file as it is. That of a sparse file
// lacks its holes.
func isRun(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return false
	}
	for record := range h.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return false
		}
	}
	return true
}
