// SPDX-License-Identifier: Apache-2.0

// Package auth finds the credential for a repository: in a docker
// config.json, in the cred.json of the reference implementation, in a map, or
// in a chain of those.
//
// The one thing to know: everywhere the credential with the longest matching
// key wins. For https://host/v2/a/b the keys host, host/a and host/a/b match,
// on path elements, whatever scheme or /v1/ the key is dressed up with. The
// names of Docker Hub are one host.
package auth

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Static is credentials by key: a host, or a host and the beginning of a
// repository.
type Static map[string]fetcher.Credential

var _ fetcher.Credentials = Static(nil)

// Lookup returns the credential with the longest matching key.
func (s Static) Lookup(_ context.Context, rawURL string) (fetcher.Credential, error) {
	cred, _, err := match(s, rawURL)
	return cred, err
}

// Chain is sources of credentials, asked in order.
type Chain []fetcher.Credentials

var _ fetcher.Credentials = Chain(nil)

// Lookup returns the first credential found. A source that fails is passed
// over, and its error returned only when no other has a credential.
func (c Chain) Lookup(ctx context.Context, rawURL string) (fetcher.Credential, error) {
	var errs []error
	for _, source := range c {
		cred, err := source.Lookup(ctx, rawURL)
		if err == nil && cred != (fetcher.Credential{}) {
			return cred, nil
		}
		errs = append(errs, err)
	}
	return fetcher.Credential{}, errors.Join(errs...)
}

// match returns the value with the longest key that rawURL matches.
func match[T any](byKey map[string]T, rawURL string) (value T, ok bool, err error) {
	name, err := repository(rawURL)
	if err != nil {
		return value, false, err
	}
	longest := -1
	for key, v := range byKey {
		key = normalize(key)
		if len(key) > longest && (name == key || strings.HasPrefix(name, key+"/")) {
			value, longest = v, len(key)
		}
	}
	return value, longest >= 0, nil
}

// repository returns host/a/b for the URL scheme://host/v2/a/b.
func repository(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" {
		return "", errors.New("look up credential: the repository has no URL with a host")
	}
	path := strings.Trim(u.Path, "/")
	if path == "v2" {
		path = ""
	}
	return hub(strings.TrimSuffix(u.Host+"/"+strings.TrimPrefix(path, "v2/"), "/")), nil
}

// normalize returns host/a/b for a key, which may be the bare thing or a URL
// such as https://index.docker.io/v1/.
func normalize(key string) string {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	key = strings.TrimSuffix(key, "/")
	for _, version := range []string{"/v1", "/v2"} {
		if host, ok := strings.CutSuffix(key, version); ok && !strings.Contains(host, "/") {
			key = host
		}
	}
	return hub(key)
}

// hub gives Docker Hub's hosts their one name.
func hub(name string) string {
	host, path, _ := strings.Cut(name, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return strings.TrimSuffix(fmt.Sprint("docker.io/", path), "/")
	}
	return name
}
