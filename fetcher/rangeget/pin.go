// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
)

// A Pin holds a blob to one version of the file or object that it is read
// from, that of the first answer: bytes of two versions are never mixed. The
// zero value is ready.
type Pin struct {
	version atomic.Pointer[version]
}

// version is what tells versions apart. Both are empty where the server tells
// nothing; then a version is known by its size alone.
type version struct {
	etag     string // a strong one
	modified string // Last-Modified, where there is no etag
}

// ETag returns the entity tag that is pinned, quotes included, or "".
func (p *Pin) ETag() string {
	if v := p.version.Load(); v != nil {
		return v.etag
	}
	return ""
}

// Modified returns the Last-Modified that is pinned, or "". There is none
// where there is an ETag.
func (p *Pin) Modified() string {
	if v := p.version.Load(); v != nil {
		return v.modified
	}
	return ""
}

// Check returns an error unless a, which is served, is of the version pinned,
// and of size bytes; a size of 0 is unknown. The first answer is pinned.
func (p *Pin) Check(a *Answer, size int64) error {
	if a.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return nil // without bytes there is nothing to mix
	}
	is := versionOf(a.Header)
	if !p.version.CompareAndSwap(nil, &is) && *p.version.Load() != is {
		return Changed(a.Request.URL.Host)
	}
	if total := totalOf(a); size > 0 && total >= 0 && total != size {
		return fmt.Errorf("%s has %d bytes under that name, not %d", a.Request.URL.Host, total, size)
	}
	return nil
}

// Changed returns the error for a file or object of a host that is another
// one than it was.
func Changed(host string) error {
	return fmt.Errorf("it has changed at %s since it was opened", host)
}

// versionOf returns the version that an answer is of. Weak tags do not tell
// bytes apart.
func versionOf(h http.Header) version {
	if etag := h.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return version{etag: etag}
	}
	return version{modified: h.Get("Last-Modified")}
}

// totalOf returns how long a says that the whole is, or -1.
func totalOf(a *Answer) int64 {
	if a.StatusCode == http.StatusOK {
		return a.ContentLength
	}
	if c, ok := parseContentRange(a.Header.Get("Content-Range")); ok {
		return c.total
	}
	return -1
}
