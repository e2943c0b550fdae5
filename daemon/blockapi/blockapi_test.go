// SPDX-License-Identifier: Apache-2.0

package blockapi_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
)

// fake is a scripted Service.
type fake struct {
	attach      func(ctx context.Context, id, specPath string) (blockapi.Attachment, error)
	detach      func(ctx context.Context, id string) error
	attachments func(ctx context.Context) ([]blockapi.Attachment, error)
	seal        func(ctx context.Context, specPath, dst string) error
	expect      func(ctx context.Context, repository string, blobs ...blockapi.Blob) error
}

func (f *fake) Attach(ctx context.Context, id, specPath string) (blockapi.Attachment, error) {
	return f.attach(ctx, id, specPath)
}
func (f *fake) Detach(ctx context.Context, id string) error { return f.detach(ctx, id) }
func (f *fake) Attachments(ctx context.Context) ([]blockapi.Attachment, error) {
	return f.attachments(ctx)
}

func (f *fake) Seal(ctx context.Context, specPath, dst string) error {
	return f.seal(ctx, specPath, dst)
}

func (f *fake) Expect(ctx context.Context, repository string, blobs ...blockapi.Blob) error {
	return f.expect(ctx, repository, blobs...)
}

// serve puts svc on the unix socket addr until stop is called or the test ends.
func serve(t *testing.T, svc blockapi.Service, addr string) (stop func()) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	blockapi.NewServer(svc).Register(s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); err != nil {
			t.Error(err)
		}
	}()
	stop = func() {
		s.Stop()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, addr string) *blockapi.Client {
	t.Helper()
	c, err := blockapi.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// connect serves svc and returns a client of it. The socket's name holds what
// a URL could not.
func connect(t *testing.T, svc blockapi.Service) *blockapi.Client {
	addr := filepath.Join(t.TempDir(), "block %d?.sock")
	serve(t, svc, addr)
	return dial(t, addr)
}

func TestValuesCross(t *testing.T) {
	want := blockapi.Attachment{
		ID: "17", SpecPath: "/snap/17/block/config.v1.json", Path: "/run/blockd/17/block", File: true,
		Writable: true, Size: 64 << 30, Image: "https://registry/v2/redis/blobs",
		State: blockapi.Waiting, Error: "registry: no route to host", FetchedBytes: 1, CachedBytes: 2, LayerBytes: 4, LocalBytes: 3, Near: true,
	}
	var calls []string
	c := connect(t, &fake{
		attach: func(_ context.Context, id, specPath string) (blockapi.Attachment, error) {
			calls = append(calls, "attach "+id+" "+specPath)
			return want, nil
		},
		detach: func(_ context.Context, id string) error {
			calls = append(calls, "detach "+id)
			return nil
		},
		attachments: func(context.Context) ([]blockapi.Attachment, error) {
			return []blockapi.Attachment{want, {ID: "18", State: blockapi.Serving}}, nil
		},
		seal: func(_ context.Context, specPath, dst string) error {
			calls = append(calls, "seal "+specPath+" "+dst)
			return nil
		},
		expect: func(_ context.Context, repository string, blobs ...blockapi.Blob) error {
			calls = append(calls, fmt.Sprint("expect ", repository, blobs))
			return nil
		},
	})
	got, err := c.Attach(t.Context(), want.ID, want.SpecPath)
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("attach: %v (-want +got):\n%s", err, d)
	}
	all, err := c.Attachments(t.Context())
	if d := cmp.Diff([]blockapi.Attachment{want, {ID: "18", State: blockapi.Serving}}, all); d != "" || err != nil {
		t.Errorf("attachments: %v (-want +got):\n%s", err, d)
	}
	if err := c.Seal(t.Context(), "/s", "/d"); err != nil {
		t.Error(err)
	}
	if err := c.Detach(t.Context(), "17"); err != nil {
		t.Error(err)
	}
	for _, blobs := range [][]blockapi.Blob{nil, {{Digest: "sha256:12", Size: 5}, {Digest: "sha256:34", Size: 6, Target: "sha256:56", SpecPath: "/s"}}} {
		if err := c.Expect(t.Context(), want.Image, blobs...); err != nil {
			t.Error(err)
		}
	}
	if d := cmp.Diff([]string{
		"attach 17 " + want.SpecPath, "seal /s /d", "detach 17",
		"expect " + want.Image + "[]", "expect " + want.Image + "[{sha256:12 5  } {sha256:34 6 sha256:56 /s}]",
	}, calls); d != "" {
		t.Errorf("calls (-want +got):\n%s", d)
	}
}

// TestManyAttachments lists more than fits into gRPC's default message size.
func TestManyAttachments(t *testing.T) {
	all := make([]blockapi.Attachment, 5000)
	for i := range all {
		all[i] = blockapi.Attachment{ID: fmt.Sprint(i), SpecPath: strings.Repeat("p", 1000)}
	}
	c := connect(t, &fake{attachments: func(context.Context) ([]blockapi.Attachment, error) { return all, nil }})
	got, err := c.Attachments(t.Context())
	if err != nil || len(got) != len(all) {
		t.Errorf("got %d attachments (%v), want %d", len(got), err, len(all))
	}
}

func TestErrorClassesCross(t *testing.T) {
	for _, class := range []error{
		errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrNotFound,
		errdefs.ErrUnavailable, errdefs.ErrInvalidArgument, errdefs.ErrDataLoss,
		errdefs.ErrPermissionDenied, context.DeadlineExceeded, errdefs.ErrUnknown,
	} {
		t.Run(class.Error(), func(t *testing.T) {
			fail := fmt.Errorf("open layer sha256:12: GET https://registry/v2: no such host: %w", class)
			c := connect(t, &fake{
				attach: func(context.Context, string, string) (blockapi.Attachment, error) {
					return blockapi.Attachment{ID: "leak"}, fail
				},
				detach:      func(context.Context, string) error { return fail },
				attachments: func(context.Context) ([]blockapi.Attachment, error) { return nil, fail },
				seal:        func(context.Context, string, string) error { return fail },
				expect:      func(context.Context, string, ...blockapi.Blob) error { return fail },
			})
			a, err := c.Attach(t.Context(), "1", "/s")
			if a != (blockapi.Attachment{}) {
				t.Errorf("attach failed and returned %+v", a)
			}
			_, listErr := c.Attachments(t.Context())
			for call, err := range map[string]error{
				"attach": err, "attachments": listErr,
				"detach": c.Detach(t.Context(), "1"), "seal": c.Seal(t.Context(), "/s", "/d"),
				"expect": c.Expect(t.Context(), "/r"),
			} {
				if !errors.Is(err, class) || !strings.Contains(err.Error(), "no such host") {
					t.Errorf("%s: got %v, want the text and class of %v", call, err, fail)
				}
			}
		})
	}
}

func TestDeadlineCrosses(t *testing.T) {
	deadline := time.Now().Add(time.Hour)
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	c := connect(t, &fake{detach: func(ctx context.Context, _ string) error {
		got, ok := ctx.Deadline()
		if !ok || got.Sub(deadline).Abs() > time.Minute {
			return fmt.Errorf("got deadline %v, want %v", got, deadline)
		}
		return nil
	}})
	if err := c.Detach(ctx, "1"); err != nil {
		t.Error(err)
	}
}

func TestCancellationCrosses(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	c := connect(t, &fake{attach: func(ctx context.Context, _, _ string) (blockapi.Attachment, error) {
		close(entered)
		<-ctx.Done()
		close(left)
		return blockapi.Attachment{}, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	if _, err := c.Attach(ctx, "1", "/s"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	<-left
}

func TestDialRejectsRelativePath(t *testing.T) {
	if c, err := blockapi.Dial("blockd.sock"); err == nil {
		t.Errorf("got client %v, want an error", c)
	}
}

func TestNoDaemon(t *testing.T) {
	addr := filepath.Join(t.TempDir(), "none.sock")
	err := dial(t, addr).Detach(t.Context(), "1")
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v, want an unavailable error naming %s", err, addr)
	}
}

// TestDaemonRestart calls while the daemon is away and expects to wait for it.
func TestDaemonRestart(t *testing.T) {
	addr := filepath.Join(t.TempDir(), "block.sock")
	svc := &fake{detach: func(context.Context, string) error { return nil }}
	stop := serve(t, svc, addr)
	c := dial(t, addr)
	if err := c.Detach(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	stop()
	answer := make(chan error, 1)
	go func() { answer <- c.Detach(t.Context(), "2") }()
	serve(t, svc, addr)
	if err := <-answer; err != nil {
		t.Errorf("call during a restart: %v", err)
	}
}

// TestFailureIsNotRepeated: only calls cut short are made again.
func TestFailureIsNotRepeated(t *testing.T) {
	calls := 0
	c := connect(t, &fake{detach: func(context.Context, string) error {
		calls++
		return fmt.Errorf("registry is away: %w", errdefs.ErrUnavailable)
	}})
	for range 2 {
		if err := c.Detach(t.Context(), "1"); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("got %v, want an unavailable error", err)
		}
	}
	if calls != 2 {
		t.Errorf("got %d calls for 2", calls)
	}
}
