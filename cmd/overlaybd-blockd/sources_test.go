// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon"
	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// configured returns the tower of openers that a configuration makes.
func configured(t *testing.T, text string) fetcher.Opener {
	t.Helper()
	cfg, err := conf.Decode(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Cache.Dir, cfg.Cache.MinFree = t.TempDir(), 0
	cfg.Registry.HostsDir, cfg.Registry.CredFile, cfg.Registry.DockerConfig = "", "", ""
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	n := &node{metrics: daemon.NewRegistry(), remote: newRegistry(cfg)}
	if n.cache, err = newCache(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	o, err := n.blobs(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func wantBlob(t *testing.T, o fetcher.Opener, ref fetcher.Ref, content []byte) {
	t.Helper()
	b, err := o.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	got := make([]byte, len(content))
	if _, err := b.ReadAt(t.Context(), got, 0); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, content) {
		t.Errorf("read %s: %v, or wrong bytes", ref.URL, err)
	}
}

// serveLayout serves an OCI layout that holds content as a web server does.
func serveLayout(t *testing.T, content []byte) (url string) {
	t.Helper()
	dir := t.TempDir()
	blobs := filepath.Join(dir, "images", "blobs", "sha256")
	path := filepath.Join(blobs, digest.FromBytes(content).Encoded())
	if err := errors.Join(os.MkdirAll(blobs, 0o755), os.WriteFile(path, content, 0o600)); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(s.Close)
	return s.URL + "/images"
}

// TestConfiguredSources reads blobs of a registry that is not there from a
// bucket and from a web server, each where its section says, and one that a
// spec has the bucket's own URL of.
func TestConfiguredSources(t *testing.T) {
	bucket := need.S3(t)
	inBucket, inWeb := fetchertest.Content(100_000, 1), fetchertest.Content(100_000, 2)
	credentials := filepath.Join(t.TempDir(), "credentials")
	text := fmt.Sprintf("[team]\naws_access_key_id = %s\naws_secret_access_key = %s\n", bucket.AccessKey, bucket.SecretKey)
	if err := os.WriteFile(credentials, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	hex := digest.FromBytes(inBucket).Encoded()
	bucket.AddBucket(t, "layers")
	bucket.AddObject(t, "layers", "here/docker/registry/v2/blobs/sha256/"+hex[:2]+"/"+hex+"/data", inBucket)
	o := configured(t, fmt.Sprintf(`
[[source]]
match = "127.0.0.1:1/team/*"
kind = "s3"
layout = "distribution"
bucket = "layers"
prefix = "here"
endpoint = %q
region = %q
path_style = true
profile = "team"
credentials_file = %q

[[source]]
match = "127.0.0.1:1"
kind = "http"
layout = "oci"
url = %q
`, bucket.URL, bucket.Region, credentials, serveLayout(t, inWeb)))
	for _, content := range [][]byte{inBucket, inWeb} { // the second is not in the bucket
		for _, size := range []int{len(content), 0} {
			dgst := digest.FromBytes(content)
			url := "http://127.0.0.1:1/v2/team/app/blobs/" + dgst.String()
			wantBlob(t, o, fetcher.Ref{URL: url, Digest: dgst, Size: int64(size)}, content)
		}
	}
	direct := fetchertest.Content(100_000, 3)
	dgst := digest.FromBytes(direct)
	bucket.AddObject(t, "layers", "there/"+dgst.String(), direct)
	wantBlob(t, o, fetcher.Ref{URL: "s3://layers/there/" + dgst.String(), Digest: dgst, Size: int64(len(direct))}, direct)
}

// TestConfiguredAgent reads a blob by way of an agent, and from the source
// that is left when there is none any more.
func TestConfiguredAgent(t *testing.T) {
	content := fetchertest.Content(100_000, 1)
	ref := fetcher.Ref{Digest: digest.FromBytes(content), Size: int64(len(content))}
	ref.URL = "http://127.0.0.1:1/v2/team/app/blobs/" + ref.Digest.String()
	asked := make(chan string, 100)
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.RequestURI
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(agent.Close)
	text := fmt.Sprintf("[p2p]\nkind = \"prefix\"\nurl = \"%s/key\"\n"+
		"[[source]]\nmatch = \"*\"\nkind = \"http\"\nlayout = \"oci\"\nurl = %q\n", agent.URL, serveLayout(t, content))
	wantBlob(t, configured(t, text), ref, content)
	select {
	case got := <-asked:
		if want := "/key/" + ref.URL; got != want {
			t.Errorf("the agent was asked for %s, want %s", got, want)
		}
	default:
		t.Error("the agent was not asked")
	}
	agent.Close()
	wantBlob(t, configured(t, text), ref, content)
}
