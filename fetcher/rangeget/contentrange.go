// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"strconv"
	"strings"
)

// contentRange is a Content-Range header in bytes.
type contentRange struct {
	off, n int64 // n is -1 for "*", the range of a 416
	total  int64 // -1 for "*"
}

// parseContentRange parses "bytes 0-99/1000", where the range or the total
// may be "*". It accepts only ranges that lie inside their total.
func parseContentRange(s string) (contentRange, bool) {
	span, total, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	if !ok || !strings.HasPrefix(s, "bytes ") {
		return contentRange{}, false
	}
	c := contentRange{n: -1, total: -1}
	if total != "*" {
		if c.total, ok = decimal(total); !ok {
			return contentRange{}, false
		}
	}
	if span == "*" {
		return c, true
	}
	first, last, _ := strings.Cut(span, "-")
	off, ok1 := decimal(first)
	end, ok2 := decimal(last)
	if !ok1 || !ok2 || end < off || c.total >= 0 && end >= c.total {
		return contentRange{}, false
	}
	c.off, c.n = off, end-off+1
	return c, true
}

// decimal parses digits and nothing else, up to 62 bits so that no sum of two
// overflows.
func decimal(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 62)
	return int64(n), err == nil
}
