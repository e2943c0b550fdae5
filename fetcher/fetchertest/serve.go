// SPDX-License-Identifier: Apache-2.0

package fetchertest

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// exchange is one request being answered.
type exchange struct {
	r     *Registry
	w     http.ResponseWriter
	req   *http.Request
	entry *Request
	fault Fault

	release chan struct{} // the registry's when the request was logged
	n       int64         // of the range; -1 without one
	off     int64
}

// begin logs the request, waits for the round trip and applies what goes wrong
// before an answer. It reports whether the request is still to be answered.
func (r *Registry) begin(e Endpoint, w http.ResponseWriter, req *http.Request) (*exchange, bool) {
	x := &exchange{r: r, w: w, req: req, fault: r.takeFault(e)}
	x.off, x.n = parseRange(req.Header.Get("Range"))
	x.entry = &Request{
		Endpoint: e, Method: req.Method, Path: req.URL.Path, Query: req.URL.Query(), Off: x.off, N: x.n,
		Authorization: req.Header.Get("Authorization"), Header: maps.Clone(req.Header),
	}
	r.mu.Lock()
	r.log = append(r.log, x.entry)
	x.release = r.release
	r.arrived.Broadcast()
	r.mu.Unlock()
	wait(req, r.opts.RTT)
	switch {
	case x.fault.Hang:
		x.hold()
	case x.fault.Reset:
		resetConn(w)
		return x, false
	case x.fault.Status != 0:
		for name, value := range map[string]string{"Retry-After": x.fault.RetryAfter, "Location": x.fault.Location} {
			if value != "" {
				w.Header().Set(name, value)
			}
		}
		x.fail(x.fault.Status)
		return x, false
	}
	return x, true
}

// done logs the status of the answer, before the client can see it.
func (x *exchange) done(status int) {
	x.r.mu.Lock()
	defer x.r.mu.Unlock()
	x.entry.Status = status
}

func (x *exchange) fail(status int) {
	x.done(status)
	http.Error(x.w, http.StatusText(status), status)
}

var objectPath = regexp.MustCompile(`^/v2/(.+)/(blobs|manifests)/([^/]+)$`)

func (r *Registry) serveOrigin(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == tokenPath {
		r.serveToken(w, req)
		return
	}
	x, ok := r.begin(Origin, w, req)
	if !ok {
		return
	}
	m := objectPath.FindStringSubmatch(req.URL.Path)
	switch {
	case m == nil && req.URL.Path != "/v2/":
		x.fail(http.StatusNotFound)
	case !x.authorized(m):
		x.fail(http.StatusUnauthorized)
	case m == nil:
		x.done(http.StatusOK)
	case m[2] == "manifests":
		x.manifest(m[1], m[3])
	default:
		x.blob(m[1], digest.Digest(m[3]))
	}
}

func (x *exchange) manifest(repo, reference string) {
	x.r.mu.Lock()
	m, ok := x.r.manifests[repo+":"+reference]
	x.r.mu.Unlock()
	if !ok {
		x.fail(http.StatusNotFound)
		return
	}
	x.w.Header().Set("Content-Type", m.mediaType)
	x.w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.content).String())
	x.off, x.n = 0, -1
	x.send(m.content)
}

func (x *exchange) blob(repo string, dgst digest.Digest) {
	x.r.mu.Lock()
	content, known := x.r.blobs[dgst], x.r.repos[repo+"@"+dgst.String()]
	epoch := x.r.epoch
	x.r.mu.Unlock()
	switch {
	case !known:
		x.fail(http.StatusNotFound)
	case x.r.opts.Redirect:
		x.w.Header().Set("Location", fmt.Sprintf("%s/%s?Signature=%s%d", x.r.storage.URL, dgst, secret, epoch))
		x.fail(http.StatusTemporaryRedirect)
	default:
		x.w.Header().Set("Docker-Content-Digest", dgst.String())
		x.send(content)
	}
}

// secret is part of signed URLs; an error that shows it leaks it.
const secret = "s3cr3t-"

func (r *Registry) serveStorage(w http.ResponseWriter, req *http.Request) {
	x, ok := r.begin(Storage, w, req)
	if !ok {
		return
	}
	r.mu.Lock()
	content, known := r.blobs[digest.Digest(strings.TrimPrefix(req.URL.Path, "/"))]
	signature := fmt.Sprint(secret, r.epoch)
	r.mu.Unlock()
	switch {
	case x.entry.Authorization != "":
		x.fail(http.StatusBadRequest)
	case req.URL.Query().Get("Signature") != signature:
		x.fail(http.StatusForbidden)
	case !known:
		x.fail(http.StatusNotFound)
	default:
		x.send(content)
	}
}

// send answers with the range of content that was asked for.
func (x *exchange) send(content []byte) {
	size := int64(len(content))
	h := x.w.Header()
	h.Set("Accept-Ranges", "bytes")
	status, body := http.StatusOK, content
	if x.n >= 0 && !x.fault.IgnoreRange {
		if x.off >= size {
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
			x.fail(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		end := min(x.off+x.n, size)
		status, body = http.StatusPartialContent, content[x.off:end]
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", x.off, end-1, size))
	}
	if x.fault.ContentRange != "" {
		h.Set("Content-Range", x.fault.ContentRange)
	}
	if x.fault.Body == Short {
		body = body[:min(x.fault.After, int64(len(body)))]
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.done(status)
	x.w.WriteHeader(status)
	if x.req.Method != http.MethodHead {
		x.sendBody(body)
	}
}

// sendBody writes body, spoilt as the fault says, at the registry's bandwidth.
func (x *exchange) sendBody(body []byte) {
	after := min(x.fault.After, int64(len(body)))
	switch x.fault.Body {
	case Cut:
		x.r.pace.write(x.w, x.req, body[:after])
		panic(http.ErrAbortHandler)
	case Stall:
		x.r.pace.write(x.w, x.req, body[:after])
		x.hold()
		body = body[after:]
	case Corrupt:
		spoilt := append([]byte(nil), body...)
		if after < int64(len(spoilt)) {
			spoilt[after] ^= 1
		}
		body = spoilt
	case Intact, Short:
	}
	x.r.pace.write(x.w, x.req, body)
}

// parseRange parses "bytes=off-last"; n is -1 where there is no such range.
func parseRange(s string) (off, n int64) {
	var last int64
	if _, err := fmt.Sscanf(s, "bytes=%d-%d", &off, &last); err != nil || off < 0 || last < off {
		return 0, -1
	}
	return off, last - off + 1
}
