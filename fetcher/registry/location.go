// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// location is a blob URL taken apart.
type location struct {
	plain  bool   // the URL's scheme is http
	host   string // host and port
	path   string // of the repository, /v2 and what a mirror puts after it included
	digest digest.Digest

	// namespace is the registry the blob belongs to, whose hosts.toml
	// applies: the ns parameter of a URL that Mirrors made, else the host.
	namespace string
	mirror    bool // the URL has an ns parameter
}

// hostName is what a host may look like: it becomes a directory name, so
// neither separators nor a leading dot.
var hostName = regexp.MustCompile(`^[\[A-Za-z0-9][\]A-Za-z0-9.:_-]*$`)

// repoPath is what the path of a repository may look like: names without a
// leading dot, so that nothing climbs out of the host's base path.
var repoPath = regexp.MustCompile(`^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$`)

// parse takes the URL of ref apart. Its errors do not show the URL, which may
// hold a password or a signature.
func parse(ref fetcher.Ref) (location, error) {
	u, err := url.Parse(ref.URL)
	if err != nil {
		return location{}, errors.New("its URL cannot be parsed")
	}
	var l location
	var found bool
	var dgst string
	l.host, l.plain = u.Host, u.Scheme == "http"
	l.path, dgst, found = cutLast(u.Path, "/blobs/")
	l.namespace = u.Query().Get("ns")
	l.mirror = l.namespace != ""
	if !l.mirror {
		l.namespace = namespaceOf(u.Host)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return l, fmt.Errorf("URL scheme %q is neither http nor https", u.Scheme)
	case !hostName.MatchString(u.Host) || !hostName.MatchString(l.namespace):
		return l, fmt.Errorf("URL host %q is no host name", u.Host)
	case !found || !repoPath.MatchString(l.path) || !l.mirror && !strings.HasPrefix(l.path, "/v2/"):
		return l, fmt.Errorf("URL path %q is not /v2/<repository>/blobs/<digest>", u.Path)
	}
	l.digest, err = digest.Parse(dgst)
	if err == nil && ref.Digest != "" && ref.Digest != l.digest {
		err = fmt.Errorf("its URL names blob %s", l.digest)
	}
	return l, err
}

// namespaceOf returns the name under which a host is configured: Docker Hub
// has several hosts, and hosts.toml knows it as docker.io.
func namespaceOf(host string) string {
	switch host {
	case "registry-1.docker.io", "index.docker.io":
		return "docker.io"
	}
	return host
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
