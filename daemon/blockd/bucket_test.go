// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher/s3"
	"github.com/overlaybd-go/overlaybd/fetcher/source"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// Devices whose layers also lie in a bucket of a real server.

// bucketNode returns a node that looks into a bucket of the server first.
func bucketNode(t *testing.T, server *need.S3Server, bucket string, change func(*s3.Options)) *node {
	t.Helper()
	server.AddBucket(t, bucket)
	credentials := filepath.Join(t.TempDir(), "credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", server.AccessKey, server.SecretKey)
	if err := os.WriteFile(credentials, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := s3.Options{Endpoint: server.URL, Region: server.Region, PathStyle: true, CredentialsFile: credentials}
	opts.HeaderTimeout, opts.IdleTimeout = 2*time.Second, 2*time.Second
	if change != nil {
		change(&opts)
	}
	opener := s3.New(opts)
	t.Cleanup(func() { _ = opener.Close() })
	rules, err := source.New(source.Rule{Match: "*/test/*", Base: "s3://" + bucket, Layout: source.OCI, Opener: opener})
	if err != nil {
		t.Fatal(err)
	}
	o := quick(20 * time.Second)
	o.elsewhere = rules.Places
	return newNodeOf(t, o)
}

// fill puts a blob into a bucket under the name of the layer pushed last.
func (n *node) fill(server *need.S3Server, bucket string, blob []byte) {
	n.t.Helper()
	server.AddObject(n.t, bucket, "blobs/sha256/"+digest.FromBytes(n.blob).Encoded(), blob)
}

// wantAll expects the whole device to read as content, to its last byte.
func wantAll(t *testing.T, device string, content []byte) {
	t.Helper()
	f, err := openDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(content))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the device reads wrong bytes, or fails: %v", err)
	}
}

// TestBucketInPlaceOfRegistry attaches and reads an image whose registry is
// down; while the bucket is gone the registry, back again, takes its place.
func TestBucketInPlaceOfRegistry(t *testing.T) {
	server := need.S3(t)
	n := bucketNode(t, server, "layers", nil)
	v, content := n.push()
	n.fill(server, "layers", n.blob)
	n.registry.SetDown(true)
	n.registry.ResetLog()
	device := n.attach("1", n.save("1", v)).Path
	wantRead(t, device, content)
	if got := len(n.registry.Log()); got != 0 {
		t.Errorf("%d requests to the registry", got)
	}
	server.RemoveBucket(t, "layers")
	n.registry.SetDown(false)
	wantAll(t, device, content)
	if len(n.registry.Log()) == 0 {
		t.Error("the registry was not asked")
	}
}

// refusing sets a server that answers with an error of S3.
func refusing(t *testing.T, status int, code string, header ...string) func(*s3.Options) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>so it is</Message></Error>", code)
	}))
	t.Cleanup(server.Close)
	return func(o *s3.Options) { o.Endpoint = server.URL }
}

// TestBadBucket: whatever is wrong with the bucket, the device reads what the
// registry has.
func TestBadBucket(t *testing.T) {
	// One server, as a process that is being started holds the files that are
	// open, those of other tests' devices too.
	server := need.S3(t)
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(func() {
		hanging.CloseClientConnections()
		hanging.Close()
	})
	spoil := func(blob []byte) []byte {
		spoilt := bytes.Clone(blob)
		for i := 1000; i < len(spoilt); i += 5000 {
			spoilt[i] ^= 1
		}
		return spoilt
	}
	for name, c := range map[string]struct {
		object func(blob []byte) []byte // in the bucket; nil for none
		change func(*s3.Options)
	}{
		"no object":   {nil, nil},
		"truncated":   {func(blob []byte) []byte { return blob[:len(blob)/2] }, nil},
		"longer":      {func(blob []byte) []byte { return append(bytes.Clone(blob), 0) }, nil},
		"spoilt":      {spoil, nil},
		"wrong keys":  {bytes.Clone, func(o *s3.Options) { o.CredentialsFile = "/nowhere" }},
		"unreachable": {bytes.Clone, func(o *s3.Options) { o.Endpoint = "http://127.0.0.1:1" }},
		"throttled":   {bytes.Clone, refusing(t, 503, "SlowDown", "Retry-After", "3600")},
		"elsewhere":   {bytes.Clone, refusing(t, 301, "PermanentRedirect", "X-Amz-Bucket-Region", "eu-west-9")},
		"expired":     {bytes.Clone, refusing(t, 400, "ExpiredToken")},
		"wrong clock": {bytes.Clone, refusing(t, 403, "RequestTimeTooSkewed")},
		"hanging":     {bytes.Clone, func(o *s3.Options) { o.Endpoint, o.HeaderTimeout = hanging.URL, 200*time.Millisecond }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bucket := strings.ReplaceAll(name, " ", "-")
			n := bucketNode(t, server, bucket, c.change)
			v, content := n.push()
			if c.object != nil {
				n.fill(server, bucket, c.object(n.blob))
			}
			device := n.attach("1", n.save("1", v)).Path
			wantAll(t, device, content)
		})
	}
}
