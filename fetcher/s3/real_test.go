// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/s3"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// put stores an object by the SDK's own client.
func put(t *testing.T, s *need.S3Server, content []byte) {
	t.Helper()
	c := sdk.New(sdk.Options{
		BaseEndpoint: &s.URL, Region: s.Region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
	})
	name := key
	_, err := c.PutObject(t.Context(), &sdk.PutObjectInput{Bucket: aws.String(bucket), Key: &name, Body: bytes.NewReader(content)})
	if err != nil {
		t.Fatal(err)
	}
}

func realServer(t *testing.T) (*need.S3Server, s3.Options) {
	t.Helper()
	s := need.S3(t)
	isolate(t)
	s.AddBucket(t, bucket)
	return s, s3.Options{Endpoint: s.URL, Region: s.Region, PathStyle: true, CredentialsFile: keys(t, s.AccessKey, s.SecretKey)}
}

func TestRealServer(t *testing.T) {
	s, opts := realServer(t)
	o := newOpener(t, opts)
	for _, known := range []bool{true, false} {
		fetchertest.Run(t, func(t *testing.T, content []byte) fetcher.Blob {
			put(t, s, content)
			size := 0
			if known {
				size = len(content)
			}
			return open(t, o, size)
		})
	}
}

// TestRealServerReplaced replaces an object between two reads.
func TestRealServerReplaced(t *testing.T) {
	s, opts := realServer(t)
	old := fetchertest.Content(50_000, 1)
	put(t, s, old)
	b := open(t, newOpener(t, opts), len(old))
	fetchertest.Want(t, b, old, 0, 10)
	put(t, s, fetchertest.Content(50_000, 2))
	if err := readErr(t, b); errors.Is(err, fetcher.ErrTemporary) || !strings.Contains(err.Error(), "changed") {
		t.Errorf("got %v, want a word about the change", err)
	}
	put(t, s, old)
	fetchertest.Want(t, b, old, 1000, 10)
}

// TestRealServerRefuses: what is wrong is told as what it is.
func TestRealServerRefuses(t *testing.T) {
	s, good := realServer(t)
	put(t, s, fetchertest.Content(2000, 1))
	for name, c := range map[string]struct {
		url    string
		change func(*s3.Options)
		class  error
	}{
		"wrong bucket":      {"s3://other/key", func(*s3.Options) {}, fetcher.ErrNotFound},
		"wrong key":         {"s3://" + bucket + "/other", func(*s3.Options) {}, fetcher.ErrNotFound},
		"wrong access key":  {objectURL, func(o *s3.Options) { o.CredentialsFile = keys(t, "nobody", s.SecretKey) }, fetcher.ErrUnauthorized},
		"wrong secret":      {objectURL, func(o *s3.Options) { o.CredentialsFile = keys(t, s.AccessKey, "wrong") }, fetcher.ErrUnauthorized},
		"anonymous":         {objectURL, func(o *s3.Options) { o.Anonymous = true }, fetcher.ErrUnauthorized},
		"no credentials":    {objectURL, func(o *s3.Options) { o.CredentialsFile = "" }, fetcher.ErrUnauthorized},
		"another endpoint":  {objectURL, func(o *s3.Options) { o.Endpoint = "http://127.0.0.1:1" }, fetcher.ErrTemporary},
		"profile not there": {objectURL, func(o *s3.Options) { o.Profile = "nobody" }, fetcher.ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			opts := good
			c.change(&opts)
			for _, size := range []int64{2000, 0} {
				b, err := newOpener(t, opts).Open(t.Context(), fetcher.Ref{URL: c.url, Size: size})
				if err == nil {
					defer func() { _ = b.Close() }()
					err = readErr(t, b)
				}
				if !errors.Is(err, c.class) || strings.Contains(err.Error(), s.SecretKey) {
					t.Errorf("got %v, want %v", err, c.class)
				}
			}
		})
	}
}

// TestRealServerOtherRegion: a region that is not the server's is an error
// that says so, or none if the server tells its own.
func TestRealServerOtherRegion(t *testing.T) {
	s, opts := realServer(t)
	content := fetchertest.Content(2000, 1)
	put(t, s, content)
	opts.Region = "us-west-2"
	b := open(t, newOpener(t, opts), 2000)
	p := make([]byte, 10)
	if _, err := b.ReadAt(t.Context(), p, 0); err != nil && !errors.Is(err, fetcher.ErrUnauthorized) || err == nil && !bytes.Equal(p, content[:10]) {
		t.Errorf("got %x, %v", p, err)
	} else {
		t.Logf("the server says: %v", err)
	}
}
