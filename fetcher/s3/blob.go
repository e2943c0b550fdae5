// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// A Blob is an object of a bucket, open for reads.
type Blob struct {
	*rangeget.Blob
	o           *Opener
	bucket, key string
	pin         rangeget.Pin
}

var (
	_ fetcher.Blob        = (*Blob)(nil)
	_ fetcher.RangeReader = (*Blob)(nil)
)

func newBlob(o *Opener, bucket, key string, ref fetcher.Ref) *Blob {
	b := &Blob{o: o, bucket: bucket, key: key}
	b.Blob = rangeget.New(rangeget.Options{Digest: ref.Digest, Host: "s3://" + bucket + "/" + key, Size: ref.Size, Get: b.fetch})
	return b
}

// fetch asks for bytes [off, off+n) of the object that was read before, and
// mends once what a refusal says can be mended.
func (b *Blob) fetch(ctx, life context.Context, off, n int64) (*rangeget.Answer, error) {
	for tried := map[remedy]bool{none: true}; ; {
		c, err := b.o.client(ctx)
		if err != nil {
			return nil, err
		}
		a, no, err := b.ask(ctx, life, c, off, n)
		if err != nil {
			return nil, err
		}
		if no == nil {
			return b.pinned(a)
		}
		a.Discard()
		r := no.remedy(b.o.region(b.bucket))
		if tried[r] {
			return nil, no.err(b.o.opts.Anonymous)
		}
		tried[r] = true
		switch r {
		case otherRegion:
			b.o.setRegion(b.bucket, no.region)
		case freshCredentials:
			b.o.forget(c)
		case none, rightClock: // the client has learnt the time from the refusal
		}
	}
}

func (b *Blob) pinned(a *rangeget.Answer) (*rangeget.Answer, error) {
	if err := b.pin.Check(a, b.Size()); err != nil {
		_ = a.Body.Close()
		return nil, err
	}
	return a, nil
}

// ask sends one request for bytes [off, off+n).
func (b *Blob) ask(ctx, life context.Context, c *client, off, n int64) (a *rangeget.Answer, no *refusal, err error) {
	w := rangeget.Watch{Header: b.o.opts.HeaderTimeout, Idle: b.o.opts.IdleTimeout, Pace: rangeget.SourcePace}
	var denied error
	a, err = w.Do(ctx, life, &url.URL{Scheme: "s3", Host: b.bucket}, func(ctx context.Context) (*http.Response, error) {
		if err := c.identify(ctx); err != nil {
			denied = err
			return nil, err
		}
		out, err := c.api.GetObject(ctx, b.request(off, n), func(so *s3.Options) {
			if region := b.o.region(b.bucket); region != "" {
				so.Region = region
			}
		})
		var answered *smithyhttp.ResponseError // also of what was never sent, with status 0
		if errors.As(err, &answered) && answered.HTTPStatusCode() != 0 {
			var r *http.Response
			r, no = refused(err, answered.Response.Response, off)
			return r, nil
		}
		if err != nil {
			return nil, cause(err)
		}
		return response(out)
	})
	if errors.Is(err, fetcher.ErrTemporary) && errors.Is(denied, fetcher.ErrUnauthorized) {
		err = denied
	}
	return a, no, err
}

// request returns the request for bytes [off, off+n) of the version pinned.
// Where there is no ETag, the answer's Last-Modified has to tell: as a
// condition, servers compare it with a time of finer grain, and refuse.
func (b *Blob) request(off, n int64) *s3.GetObjectInput {
	r := fmt.Sprintf("bytes=%d-%d", off, off+n-1)
	in := &s3.GetObjectInput{Bucket: &b.bucket, Key: &b.key, Range: &r}
	if etag := b.pin.ETag(); etag != "" {
		in.IfMatch = &etag
	}
	if b.o.opts.RequesterPays {
		in.RequestPayer = types.RequestPayerRequester
	}
	return in
}

// response returns the HTTP response that out was made of.
func response(out *s3.GetObjectOutput) (*http.Response, error) {
	raw, ok := middleware.GetRawResponse(out.ResultMetadata).(*smithyhttp.Response)
	if !ok {
		return nil, errors.Join(errors.New("the client has lost the answer"), out.Body.Close())
	}
	r := *raw.Response
	r.Body = out.Body
	return &r, nil
}

// refused returns the response that err is about, without its body, which the
// client has read, and what it means. That an object has no bytes is no
// refusal, but S3 leaves out the header that says so.
func refused(err error, answered *http.Response, off int64) (*http.Response, *refusal) {
	r := *answered
	r.Body = http.NoBody
	if r.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		return &r, newRefusal(err, &r)
	}
	r.Header = r.Header.Clone()
	if off == 0 && r.Header.Get("Content-Range") == "" {
		r.Header.Set("Content-Range", "bytes */0")
	}
	return &r, nil
}

// cause returns what kept a request from being answered, without the client's
// account of the request.
func cause(err error) error {
	var sent *smithyhttp.RequestSendError
	if errors.As(err, &sent) {
		return sent.Err
	}
	return err
}
