// SPDX-License-Identifier: Apache-2.0

// Package s3 reads ranges of objects in S3 buckets, Amazon's or those of any
// server with the same protocol. An object's URL is s3://bucket/key.
//
// The one thing to know: the first answer's ETag is what every later one must
// have, and its size the blob's; an object that was replaced is an error and
// never mixed with the old one.
//
// Nothing here retries, apart from what an answer says how to mend: a bucket
// in another region, credentials that have to be read anew, a clock that is
// wrong. Each is tried once per read. What may pass by itself is a
// fetcher.ErrTemporary; package fetcher/retry deals with those.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// Options of an Opener. The zero value reads from Amazon's S3 with what its
// default chain finds: environment, files in ~/.aws, the machine's role.
type Options struct {
	Endpoint string // URL of the server; empty for Amazon's
	Region   string // default: that of the chain, else us-east-1

	// PathStyle puts the bucket into the path instead of the host name.
	PathStyle bool

	// RequesterPays accepts to be charged for what is read.
	RequesterPays bool

	Anonymous       bool   // without credentials
	Profile         string // of the configuration and credentials files
	CredentialsFile string // in place of ~/.aws; its default profile unless Profile names one

	rangeget.Timeouts // IdleTimeout is for 16 KiB
}

// An Opener opens objects of s3 URLs as blobs.
type Opener struct {
	opts Options

	mu      sync.Mutex // guards what follows
	current *client    // nil until the first read, and when it has to be made anew
	regions map[string]string
}

var _ fetcher.Opener = (*Opener)(nil)

// New returns an Opener. It looks for credentials at the first read, so that
// what is wrong with them does not keep anyone from starting.
func New(opts Options) *Opener {
	opts.Timeouts = opts.WithDefaults()
	return &Opener{opts: opts, regions: map[string]string{}}
}

// Open opens the object ref's URL names. It sends no request when ref.Size is
// known, so that what is wrong with the object shows at the first read.
func (o *Opener) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := o.open(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", ref.Digest, err)
	}
	return b, nil
}

func (o *Opener) open(ctx context.Context, ref fetcher.Ref) (*Blob, error) {
	bucket, key, err := parse(ref.URL)
	if err != nil {
		return nil, err
	}
	b := newBlob(o, bucket, key, ref)
	if ref.Size == 0 {
		err = b.Probe(ctx)
	}
	if err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

// Close releases idle connections. Blobs still open can be read on.
func (o *Opener) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current != nil {
		o.current.transport.CloseIdleConnections()
	}
	return nil
}

// bucketName is what a bucket may be called: what servers accept differs, but
// it becomes a host name or an element of a path.
var bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$`)

// maxKey is the longest key, in bytes, that S3 knows.
const maxKey = 1024

// parse takes s3://bucket/key apart.
func parse(rawURL string) (bucket, key string, err error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", "", errors.New("its URL cannot be parsed")
	}
	key = strings.TrimPrefix(u.Path, "/")
	switch {
	case u.Scheme != "s3":
		return "", "", fmt.Errorf("URL scheme %q is not s3", u.Scheme)
	case !bucketName.MatchString(u.Host) || u.User != nil:
		return "", "", fmt.Errorf("URL host %.255q is no bucket", u.Host)
	case key == "" || len(key) > maxKey || u.RawQuery != "" || u.Fragment != "":
		return "", "", fmt.Errorf("URL of bucket %s names no object", u.Host)
	}
	return u.Host, key, nil
}
