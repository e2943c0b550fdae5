// SPDX-License-Identifier: Apache-2.0

// Package source knows where else than in its registry a blob can be had: in
// a bucket, or on a web server. A rule names some repositories, and where
// whoever fills the bucket puts their blobs.
//
// The one thing to know: a rule is a guess. Its source may lack a blob, or be
// away; package fetcher/mirror goes from one to the next, and the registry is
// the last.
package source

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
)

// A Rule says where the blobs of some repositories can be had.
type Rule struct {
	// Match names repositories, registry first: registry.example/team/app. A *
	// stands for any characters. What is below a match matches, too.
	Match string

	Base   string         // URL that the keys of Layout are below, such as s3://bucket/prefix
	Layout Layout         // how blobs are named there
	Opener fetcher.Opener // of those URLs
}

// Rules are rules in the order in which they are tried.
type Rules struct {
	rules []rule
}

type rule struct {
	name   string
	match  *regexp.Regexp
	base   *url.URL
	layout Layout
	opener fetcher.Opener
}

// New returns Rules of the rules given, or an error about the first that is
// none.
func New(rules ...Rule) (*Rules, error) {
	rs := new(Rules)
	for i, r := range rules {
		compiled, err := compile(r)
		if err != nil {
			return nil, fmt.Errorf("source %d, for %q: %w", i+1, r.Match, err)
		}
		// Two rules may lead to buckets of one name on two servers.
		compiled.name = fmt.Sprintf("%d %s", i+1, compiled.base.Host)
		rs.rules = append(rs.rules, compiled)
	}
	return rs, nil
}

func compile(r Rule) (rule, error) {
	base, err := url.Parse(r.Base)
	switch {
	case r.Match == "":
		return rule{}, errors.New("it matches no repository")
	case err != nil || base.Scheme == "" || base.Host == "" || base.Fragment != "":
		return rule{}, errors.New("its base is no URL with a host")
	case !r.Layout.valid():
		return rule{}, fmt.Errorf("layout %q is not known", r.Layout)
	}
	pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSuffix(r.Match, "/")), `\*`, ".*")
	match, err := regexp.Compile(`^(?:` + pattern + `)(?:/.*)?$`)
	return rule{match: match, base: base, layout: r.Layout, opener: r.Opener}, err
}

// Places returns where the blob of ref may be had, in the order of the rules.
func (rs *Rules) Places(ref fetcher.Ref) []mirror.Place {
	name, dgst, err := registry.Name(ref)
	if err != nil {
		return nil // the registry's Opener says what is wrong with it
	}
	var places []mirror.Place
	for _, r := range rs.rules {
		key, err := r.layout.Key(dgst)
		if err != nil || !r.match.MatchString(name) {
			continue
		}
		at := fetcher.Ref{URL: r.base.JoinPath(key).String(), Digest: dgst, Size: ref.Size}
		places = append(places, mirror.Place{Name: r.name, Ref: at, Opener: r.opener})
	}
	return places
}
