// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net/url"
	"time"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/agent"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
	"github.com/overlaybd-go/overlaybd/fetcher/http"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/s3"
	"github.com/overlaybd-go/overlaybd/fetcher/source"
)

// newPlaces returns where else than at its registry a blob can be had, best
// first, and what to close after use.
func newPlaces(cfg *conf.Config, reg *registry.Opener, limited *limit.Opener) (places func(fetcher.Ref) []mirror.Place, closers []io.Closer, err error) {
	rules, closers, err := newSources(cfg, limited)
	if err != nil || cfg.P2P.Kind == "" {
		return rules.Places, closers, err
	}
	a, err := agent.New(agent.Options{
		Kind: agent.Kind(cfg.P2P.Kind), URL: cfg.P2P.URL, CAFile: cfg.P2P.CAFile,
		Timeouts: timeouts(cfg, cfg.P2P.Timeout),
	})
	if err != nil {
		return nil, closers, err
	}
	opener := limited.Over(a.Opener(reg.Via(a, timeouts(cfg, cfg.P2P.Timeout))))
	return func(ref fetcher.Ref) []mirror.Place {
		nearest := mirror.Place{Name: "agent " + a.Host(), Ref: a.Ref(ref), Opener: opener}
		return append([]mirror.Place{nearest}, rules.Places(ref)...)
	}, append(closers, a), nil
}

// newSources returns the rules of the configuration, each with an opener of
// its own under the limits that all share, and what to close after use.
func newSources(cfg *conf.Config, limited *limit.Opener) (*source.Rules, []io.Closer, error) {
	var rules []source.Rule
	var closers []io.Closer
	for _, s := range cfg.Sources {
		r := source.Rule{Match: s.Match, Layout: source.Layout(s.Layout)}
		var opener interface {
			fetcher.Opener
			io.Closer
		}
		if s.Kind == "s3" {
			r.Base = (&url.URL{Scheme: "s3", Host: s.Bucket, Path: "/" + s.Prefix}).String()
			opener = newBucket(cfg, s)
		} else {
			r.Base = s.URL
			opener = newWeb(cfg, s)
		}
		r.Opener = limited.Over(opener)
		rules, closers = append(rules, r), append(closers, opener)
	}
	rs, err := source.New(rules...)
	return rs, closers, err
}

func newBucket(cfg *conf.Config, s conf.Source) *s3.Opener {
	return s3.New(s3.Options{
		Endpoint:        s.Endpoint,
		Region:          s.Region,
		PathStyle:       s.PathStyle,
		RequesterPays:   s.RequesterPays,
		Anonymous:       s.Anonymous,
		Profile:         s.Profile,
		CredentialsFile: s.CredentialsFile,
		Timeouts:        timeouts(cfg, s.Timeout),
	})
}

func newWeb(cfg *conf.Config, s conf.Source) *http.Opener {
	return http.New(http.Options{
		Credentials: credentials(cfg),
		UserAgent:   cfg.Registry.UserAgent,
		Timeouts:    timeouts(cfg, s.Timeout),
	})
}

// timeouts are those of a source that has others behind it.
func timeouts(cfg *conf.Config, answer conf.Duration) rangeget.Timeouts {
	return rangeget.Timeouts{
		DialTimeout:   time.Duration(min(cfg.Registry.DialTimeout, answer)),
		HeaderTimeout: time.Duration(answer),
		IdleTimeout:   time.Duration(answer),
	}
}

// credentials are those of registries and web servers.
func credentials(cfg *conf.Config) fetcher.Credentials {
	return auth.Chain{auth.File(cfg.Registry.CredFile), auth.Docker(cfg.Registry.DockerConfig)}
}
