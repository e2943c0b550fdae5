// SPDX-License-Identifier: Apache-2.0

package need

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// An S3Server is a server of buckets of a test's own. It checks signatures.
type S3Server struct {
	URL, Region          string
	AccessKey, SecretKey string

	dir string
}

const versitygw = "github.com/versity/versitygw"

// S3 starts a server of buckets that ends with the test. Unless REQUIRE lists
// s3, the test is skipped where the server has yet to be built.
func S3(t testing.TB) *S3Server {
	t.Helper()
	if cache, err := os.UserCacheDir(); !required("s3") {
		built, _ := filepath.Glob(filepath.Join(cache, "overlaybd-test", "versitygw-v*", "versitygw")) // a good pattern
		check(t, "s3", err == nil && len(built) > 0, "versitygw is not built yet; REQUIRE=s3 builds it")
	}
	bin := Tool(t, "versitygw", versitygw, versitygw+"/cmd/versitygw")
	s := &S3Server{Region: "eu-test-1", AccessKey: "access", SecretKey: "s3cr3t", dir: t.TempDir()}
	s.start(t, filepath.Join(bin, "versitygw"))
	return s
}

func (s *S3Server) start(t testing.TB, program string) {
	t.Helper()
	address := freeAddress(t)
	// The test's context ends before its cleanups, which may want the server.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program,
		"--port", address, "--region", s.Region, "--keep-alive", "posix", s.dir)
	cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.SecretKey}
	log, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	s.URL = "http://" + address
	t.Cleanup(start(t, cmd, log, s.URL))
	waitForListener(t, address)
}

// AddBucket makes a bucket.
func (s *S3Server) AddBucket(t testing.TB, name string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(s.dir, name), 0o755); err != nil {
		t.Fatal(err)
	}
}

// AddObject puts an object into a bucket behind the server's back, which keeps
// buckets as directories: it has no ETag.
func (s *S3Server) AddObject(t testing.TB, bucket, key string, content []byte) {
	t.Helper()
	path := filepath.Join(s.dir, bucket, filepath.FromSlash(key))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// RemoveBucket removes a bucket and what is in it.
func (s *S3Server) RemoveBucket(t testing.TB, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		t.Fatal(err)
	}
}

// freeAddress returns an address of this machine that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return address
}

// waitForListener returns once somebody listens on address: a server that says
// so a moment before it does.
func waitForListener(t testing.TB, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			tick.Stop()
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Fatalf("nobody listens on %s: %v", address, err)
		}
	}
}
