// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"net/url"
	"strings"
	"time"
)

// Source says where else than in their registry the blobs of some
// repositories can be read.
type Source struct {
	Match   string   `toml:"match"`   // registry.example/team/*
	Kind    string   `toml:"kind"`    // s3, http
	Layout  string   `toml:"layout"`  // distribution, oci, flat
	Timeout Duration `toml:"timeout"` // of one answer

	// Of kind s3.
	Bucket          string `toml:"bucket"`
	Prefix          string `toml:"prefix"`
	Endpoint        string `toml:"endpoint"` // empty: Amazon's
	Region          string `toml:"region"`
	PathStyle       bool   `toml:"path_style"`
	RequesterPays   bool   `toml:"requester_pays"`
	Profile         string `toml:"profile"`
	CredentialsFile string `toml:"credentials_file"`
	Anonymous       bool   `toml:"anonymous"`

	// Of kind http.
	URL string `toml:"url"`
}

// P2P is the peer-to-peer agent that registries' blobs are read by way of.
type P2P struct {
	Kind    string   `toml:"kind"` // prefix, mirror, proxy; empty: none
	URL     string   `toml:"url"`
	Timeout Duration `toml:"timeout"` // of one answer
	CAFile  string   `toml:"ca_file"`
}

// sourceTimeout is the default of a source's timeout: much less than a fetch
// may take, which has other places to try.
const sourceTimeout = Duration(5 * time.Second)

// withDefaults fills in what the sections left out.
func withDefaults(sources []Source) []Source {
	if len(sources) == 0 {
		return nil
	}
	for i := range sources {
		if sources[i].Timeout == 0 {
			sources[i].Timeout = sourceTimeout
		}
	}
	return sources
}

// validate checks a source, whose keys begin with at. fetch is how long a
// fetch may take altogether.
func (s *Source) validate(p *problems, at string, fetch Duration) {
	p.check(s.Match != "" && !strings.Contains(s.Match, "://") && !strings.ContainsAny(s.Match, " \t\r\n"), at+"match", "%q is not registry/repository", s.Match)
	p.oneOf(at+"layout", s.Layout, "distribution", "oci", "flat")
	p.check(s.Timeout > 0, at+"timeout", "is not positive")
	p.check(s.Timeout < fetch, at+"timeout", "%v leaves no time of cache.fetch_timeout (%v) for another source", s.Timeout, fetch)
	switch s.Kind {
	case "s3":
		s.validateS3(p, at)
	case "http":
		p.url(at+"url", s.URL)
		rest := *s
		rest.Match, rest.Kind, rest.Layout, rest.Timeout, rest.URL = "", "", "", 0, ""
		p.check(rest == Source{}, at+"kind", "\"http\" has keys that only \"s3\" has")
	default:
		p.oneOf(at+"kind", s.Kind, "s3", "http")
	}
}

func (s *Source) validateS3(p *problems, at string) {
	p.check(s.Bucket != "" && !strings.ContainsAny(s.Bucket, "/:?#@% "), at+"bucket", "%q is not the name of a bucket", s.Bucket)
	p.check(s.URL == "", at+"url", "is of kind \"http\" only")
	if s.Endpoint != "" {
		p.url(at+"endpoint", s.Endpoint)
	}
	p.check(!strings.ContainsAny(s.Region, "/@:?#. "), at+"region", "%q is not a region", s.Region)
	p.maybePath(at+"credentials_file", s.CredentialsFile)
	p.check(!s.Anonymous || s.Profile == "" && s.CredentialsFile == "", at+"anonymous", "is on, but credentials are named, too")
}

// validate checks the agent. fetch is how long a fetch may take altogether.
func (a *P2P) validate(p *problems, fetch Duration) {
	p.check(a.Timeout > 0, "p2p.timeout", "is not positive")
	if a.Kind == "" {
		p.check(a.URL == "", "p2p.kind", "is empty, but p2p.url names an agent")
		return
	}
	p.oneOf("p2p.kind", a.Kind, "prefix", "mirror", "proxy")
	p.url("p2p.url", a.URL)
	p.check(!strings.Contains(a.URL, "?"), "p2p.url", "has a query")
	p.check(a.Timeout < fetch, "p2p.timeout", "%v leaves no time of cache.fetch_timeout (%v) for the registry", a.Timeout, fetch)
	p.maybePath("p2p.ca_file", a.CAFile)
}

// url accepts http and https URLs that hold no password, which errors and logs
// would show.
func (p *problems) url(key, text string) {
	u, err := url.Parse(text)
	ok := err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && u.Fragment == ""
	p.check(ok, key, "is not a URL such as https://host/path, without a password")
}
