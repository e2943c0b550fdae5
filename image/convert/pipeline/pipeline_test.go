// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A source opens the same stream whatever it is asked for.
type source func(ctx context.Context) (io.Reader, error)

func (s source) Open(ctx context.Context, _ ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := s(ctx)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}

func descriptor(p []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(p), Size: int64(len(p))}
}

func TestDownload(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), (3*pieceSize*pieces+5)/16)
	var last int64
	d := newDownload(t.Context(), source(func(context.Context) (io.Reader, error) {
		return iotest.HalfReader(bytes.NewReader(content)), nil
	}), descriptor(content), func(done int64) { last = done })
	defer d.close()
	got, err := io.ReadAll(d)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(content))
	}
	if d.close(); last != int64(len(content)) {
		t.Errorf("reported %d bytes", last)
	}
}

func TestDownloadFails(t *testing.T) {
	content := []byte("content")
	broken := errors.New("line cut")
	for name, tt := range map[string]struct {
		open source
		want string
	}{
		"other bytes": {func(context.Context) (io.Reader, error) { return strings.NewReader("Content"), nil }, "has digest"},
		"too short":   {func(context.Context) (io.Reader, error) { return strings.NewReader("conten"), nil }, "content of 6 bytes"},
		"too long":    {func(context.Context) (io.Reader, error) { return strings.NewReader("contents"), nil }, "larger than the 7 bytes"},
		"broken":      {func(context.Context) (io.Reader, error) { return iotest.ErrReader(broken), nil }, "line cut"},
		"no blob":     {func(context.Context) (io.Reader, error) { return nil, broken }, "line cut"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDownload(t.Context(), tt.open, descriptor(content), func(int64) {})
			defer d.close()
			if _, err := io.ReadAll(d); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// An endless reader counts what it was asked for.
type endless struct{ read *atomic.Int64 }

func (e endless) Read(p []byte) (int, error) {
	e.read.Add(int64(len(p)))
	return len(p), nil
}

// TestDownloadIsBounded: what nobody reads is not fetched beyond the pieces
// that are kept, and closing a download ends it.
func TestDownloadIsBounded(t *testing.T) {
	var read atomic.Int64
	full := make(chan struct{})
	desc := ocispec.Descriptor{Digest: digest.FromString(""), Size: 1 << 60}
	d := newDownload(t.Context(), source(func(context.Context) (io.Reader, error) { return endless{&read}, nil }), desc, func(done int64) {
		if done == pieceSize*pieces {
			close(full)
		}
	})
	<-full
	d.close()
	if n := read.Load(); n > pieceSize*pieces {
		t.Errorf("%d bytes were read ahead", n)
	}
	if _, err := io.Copy(io.Discard, d); !errors.Is(err, context.Canceled) {
		t.Errorf("read on with %v", err)
	}
}

// TestDownloadEndsWithItsContext even where nobody reads or closes it.
func TestDownloadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	d := newDownload(ctx, source(func(ctx context.Context) (io.Reader, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}), ocispec.Descriptor{Digest: digest.FromString(""), Size: 1}, func(int64) {})
	cancel(reason)
	d.work.Wait()
	if _, err := d.Read(make([]byte, 1)); !errors.Is(err, reason) {
		t.Errorf("error %v", err)
	}
}
