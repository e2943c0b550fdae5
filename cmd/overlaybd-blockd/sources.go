// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
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

// sources are what the configuration knows of beside registries, under the
// limits that all share.
type sources struct {
	cfg     *conf.Config
	limited *limit.Opener
	closers []io.Closer // to be closed after use

	places  func(fetcher.Ref) []mirror.Place // of a registry's blob, best first
	buckets buckets
}

// newSources returns the sources of the configuration. What it has made until
// an error is to be closed, too.
func newSources(cfg *conf.Config, reg *registry.Opener, limited *limit.Opener) (*sources, error) {
	s := &sources{cfg: cfg, limited: limited}
	rules, err := s.addRules()
	if err != nil {
		return s, err
	}
	s.places = rules.Places
	if cfg.P2P.Kind != "" {
		err = s.addAgent(reg)
	}
	return s, err
}

// addRules adds the [[source]] sections.
func (s *sources) addRules() (*source.Rules, error) {
	other := newBucket(s.cfg, conf.Source{Timeout: s.cfg.Registry.IdleTimeout}) // nothing is behind it
	s.buckets = buckets{named: map[string]fetcher.Opener{}, others: s.add(other)}
	var rules []source.Rule
	for _, section := range s.cfg.Sources {
		r := source.Rule{Match: section.Match, Layout: source.Layout(section.Layout)}
		if section.Kind == "s3" {
			r.Base = (&url.URL{Scheme: "s3", Host: section.Bucket, Path: "/" + section.Prefix}).String()
			r.Opener = s.add(newBucket(s.cfg, section))
			s.buckets.name(section.Bucket, r.Opener)
		} else {
			r.Base = section.URL
			r.Opener = s.add(newWeb(s.cfg, section))
		}
		rules = append(rules, r)
	}
	return source.New(rules...)
}

// addAgent puts the [p2p] agent before all other places.
func (s *sources) addAgent(reg *registry.Opener) error {
	wait := timeouts(s.cfg, s.cfg.P2P.Timeout)
	a, err := agent.New(agent.Options{Kind: agent.Kind(s.cfg.P2P.Kind), URL: s.cfg.P2P.URL, CAFile: s.cfg.P2P.CAFile, Timeouts: wait})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, a)
	opener, others := s.limited.Over(a.Opener(reg.Via(a, wait))), s.places
	s.places = func(ref fetcher.Ref) []mirror.Place {
		nearest := mirror.Place{Name: "agent " + a.Host(), Ref: a.Ref(ref), Opener: opener}
		return append([]mirror.Place{nearest}, others(ref)...)
	}
	return nil
}

// add returns o under the limits, and closes it with the sources.
func (s *sources) add(o interface {
	fetcher.Opener
	io.Closer
},
) fetcher.Opener {
	s.closers = append(s.closers, o)
	return s.limited.Over(o)
}

// buckets opens s3 URLs that a spec has. A bucket that a section is about is
// asked as it says, any other one as Amazon's tools would.
type buckets struct {
	named  map[string]fetcher.Opener
	others fetcher.Opener
}

var _ fetcher.Opener = buckets{}

// name makes o the opener of a bucket, unless it has one.
func (b buckets) name(bucket string, o fetcher.Opener) {
	if b.named[bucket] == nil {
		b.named[bucket] = o
	}
}

func (b buckets) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	if u, err := url.Parse(ref.URL); err == nil && b.named[u.Host] != nil {
		return b.named[u.Host].Open(ctx, ref)
	}
	return b.others.Open(ctx, ref)
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
