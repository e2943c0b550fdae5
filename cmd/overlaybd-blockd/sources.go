// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net/url"
	"time"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
	"github.com/overlaybd-go/overlaybd/fetcher/http"
	"github.com/overlaybd-go/overlaybd/fetcher/limit"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/fetcher/s3"
	"github.com/overlaybd-go/overlaybd/fetcher/source"
)

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
		Timeouts:        timeouts(cfg, s),
	})
}

func newWeb(cfg *conf.Config, s conf.Source) *http.Opener {
	return http.New(http.Options{
		Credentials: credentials(cfg),
		UserAgent:   cfg.Registry.UserAgent,
		Timeouts:    timeouts(cfg, s),
	})
}

func timeouts(cfg *conf.Config, s conf.Source) rangeget.Timeouts {
	return rangeget.Timeouts{
		DialTimeout:   time.Duration(cfg.Registry.DialTimeout),
		HeaderTimeout: time.Duration(s.Timeout),
		IdleTimeout:   time.Duration(s.Timeout),
	}
}

// credentials are those of registries and web servers.
func credentials(cfg *conf.Config) fetcher.Credentials {
	return auth.Chain{auth.File(cfg.Registry.CredFile), auth.Docker(cfg.Registry.DockerConfig)}
}
