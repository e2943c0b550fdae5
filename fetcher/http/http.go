// SPDX-License-Identifier: Apache-2.0

// Package http reads ranges of files of web servers and CDNs: of any server
// that answers a Range, and knows nothing of registries.
//
// The one thing to know: a name is trusted to lead to one file. The first
// answer's ETag, or else its Last-Modified, is what every later one must have;
// a file that was replaced is an error and never mixed with the old one.
package http

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// Options of an Opener. The zero value reads anonymously.
type Options struct {
	Credentials fetcher.Credentials // looked up by URL, for basic authorization; nil means anonymous
	UserAgent   string              // default "overlaybd"
	TLS         *tls.Config         // nil means the system's roots

	rangeget.Timeouts // IdleTimeout is for 16 KiB
}

func (o Options) withDefaults() Options {
	o.Timeouts = o.WithDefaults()
	if o.UserAgent == "" {
		o.UserAgent = "overlaybd"
	}
	return o
}

// An Opener opens files of http and https URLs as blobs.
type Opener struct {
	opts      Options
	transport *http.Transport
}

var _ fetcher.Opener = (*Opener)(nil)

// New returns an Opener. Its Close releases idle connections.
func New(opts Options) *Opener {
	opts = opts.withDefaults()
	t := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck // nobody replaces it
	rangeget.Tune(t, opts.DialTimeout)
	t.TLSClientConfig = opts.TLS.Clone()
	return &Opener{opts: opts, transport: t}
}

// Open opens the file ref's URL leads to. It sends no request when ref.Size is
// known, so that what is wrong with the file shows at the first read.
func (o *Opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := o.open(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", ref.Digest, err)
	}
	return b, nil
}

func (o *Opener) open(ctx context.Context, ref fetcher.Ref) (*Blob, error) {
	u, err := parse(ref.URL)
	if err != nil {
		return nil, err
	}
	b := newBlob(o, u, ref)
	if ref.Size == 0 {
		err = b.Probe(ctx)
	}
	if err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

// parse parses the URL of a file. Its errors do not show the URL, which may
// hold a password or a signature.
func parse(rawURL string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		return nil, errors.New("its URL cannot be parsed")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("URL scheme %q is neither http nor https", u.Scheme)
	case u.Host == "":
		return nil, errors.New("its URL has no host")
	case u.User != nil:
		return nil, fmt.Errorf("the URL of %s has a password in it, where it would be seen", u.Host)
	}
	return u, nil
}

// Close releases idle connections. Blobs still open can be read on.
func (o *Opener) Close() error {
	o.transport.CloseIdleConnections()
	return nil
}
