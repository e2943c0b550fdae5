// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// client is what one reading of the configuration and credentials gave.
type client struct {
	api         *s3.Client
	credentials aws.CredentialsProvider // nil for anonymous
	transport   *http.Transport
}

// client returns the client in use, made if need be.
func (o *Opener) client(ctx context.Context) (*client, error) {
	o.mu.Lock()
	c := o.current
	o.mu.Unlock()
	if c != nil {
		return c, nil
	}
	fresh, err := o.load(ctx)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current == nil { // else another read was faster; share its connections
		o.current = fresh
	}
	return o.current, nil
}

// forget makes the next read look for configuration and credentials anew,
// unless another read has done so since it got c.
func (o *Opener) forget(c *client) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current == c {
		o.current = nil
		c.transport.CloseIdleConnections()
	}
}

// region returns the region where a bucket was found, or "".
func (o *Opener) region(bucket string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.regions[bucket]
}

func (o *Opener) setRegion(bucket, region string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.regions[bucket] = region
}

// load makes a client of what the default chain finds.
func (o *Opener) load(ctx context.Context) (*client, error) {
	cfg, err := config.LoadDefaultConfig(ctx, o.loadOptions()...)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read configuration of S3: %w", fetcher.ErrUnauthorized, err)
	}
	h, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return nil, fmt.Errorf("HTTP client of S3 is a %T", cfg.HTTPClient)
	}
	c := &client{credentials: cfg.Credentials, transport: h.GetTransport()}
	if o.opts.Anonymous {
		c.credentials = nil
	}
	c.api = s3.NewFromConfig(cfg, func(so *s3.Options) {
		so.HTTPClient = direct{c.transport}
		so.UsePathStyle = o.opts.PathStyle
		// A checksum is of the whole object, and reads are of ranges.
		so.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		so.DisableLogOutputChecksumValidationSkipped = true
		if o.opts.Endpoint != "" {
			so.BaseEndpoint = &o.opts.Endpoint
		}
	})
	return c, nil
}

func (o *Opener) loadOptions() []func(*config.LoadOptions) error {
	h := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { rangeget.Tune(t, o.opts.DialTimeout) })
	opts := []func(*config.LoadOptions) error{
		config.WithHTTPClient(h),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithLogger(logging.Nop{}),
		config.WithDefaultRegion("us-east-1"), // whatever the bucket's: the answer tells
	}
	if o.opts.Region != "" {
		opts = append(opts, config.WithRegion(o.opts.Region))
	}
	if o.opts.Anonymous {
		opts = append(opts, config.WithCredentialsProvider(aws.AnonymousCredentials{}))
	}
	if o.opts.CredentialsFile != "" {
		opts = append(opts, config.WithSharedCredentialsFiles([]string{o.opts.CredentialsFile}))
	}
	if o.opts.CredentialsFile != "" || o.opts.Profile != "" {
		// Asked for by name, a profile comes before the environment.
		opts = append(opts, config.WithSharedConfigProfile(cmp.Or(o.opts.Profile, "default")))
	}
	return opts
}

// identify makes sure that there are credentials. They are cached.
func (c *client) identify(ctx context.Context) error {
	if c.credentials == nil {
		return nil
	}
	_, err := c.credentials.Retrieve(ctx)
	var network net.Error
	if err == nil || ctx.Err() != nil || errors.As(err, &network) {
		return err
	}
	return fmt.Errorf("%w: no credentials for S3: name a profile or a credentials file, or read anonymously: %w", fetcher.ErrUnauthorized, err)
}

// direct sends requests and follows no redirect: the headers of a request are
// signed for one host, and one of them may hold a session's token.
type direct struct{ transport *http.Transport }

func (d direct) Do(req *http.Request) (*http.Response, error) { return d.transport.RoundTrip(req) }
