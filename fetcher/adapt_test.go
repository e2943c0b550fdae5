// SPDX-License-Identifier: Apache-2.0

package fetcher_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// memBlob is a Blob over a byte slice.
type memBlob []byte

func (m memBlob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}
func (m memBlob) Size() int64  { return int64(len(m)) }
func (m memBlob) Close() error { return nil }

// openFunc is an Opener as a function.
type openFunc func(fetcher.Ref) (fetcher.Blob, error)

func (f openFunc) Open(_ context.Context, ref fetcher.Ref) (fetcher.Blob, error) { return f(ref) }

func TestReadRangeOfPlainBlob(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	r, err := fetcher.ReadRange(t.Context(), memBlob(data), 5, 600_000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data[5:600_005]) {
		t.Errorf("got %d bytes that differ from the range", len(got))
	}
}

func TestReadRangePastEndIsUnexpectedEOF(t *testing.T) {
	r, err := fetcher.ReadRange(t.Context(), memBlob("short"), 2, 10)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if string(got) != "ort" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %q, %v; want \"ort\", unexpected EOF", got, err)
	}
}

func TestDropWithoutCopies(t *testing.T) {
	if err := fetcher.Drop(t.Context(), memBlob("x"), 0, 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want errors.ErrUnsupported", err)
	}
}

func TestSchemes(t *testing.T) {
	s := fetcher.Schemes{"file": openFunc(func(fetcher.Ref) (fetcher.Blob, error) { return memBlob("file"), nil })}
	b, err := s.Open(t.Context(), fetcher.Ref{URL: "file:///x"})
	if err != nil || b.Size() != 4 {
		t.Fatalf("got %v, %v", b, err)
	}
	_, err = s.Open(t.Context(), fetcher.Ref{URL: "gopher://user:secret@host/x"})
	if err == nil || !strings.Contains(err.Error(), `"gopher"`) || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v; want an error naming the scheme and hiding the password", err)
	}
}

// upper is the content of a blob in capitals.
type upper struct{ fetcher.Blob }

func (u upper) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := u.Blob.ReadAt(ctx, p, off)
	copy(p, bytes.ToUpper(p[:n]))
	return n, err
}

// keeper is an Opener that says what it was asked to keep.
type keeper struct {
	openFunc
	kept []digest.Digest
}

func (k *keeper) OpenMade(ctx context.Context, ref fetcher.Ref, key digest.Digest, mk fetcher.Maker) (fetcher.Blob, error) {
	k.kept = append(k.kept, key)
	return fetcher.OpenMade(ctx, k.openFunc, ref, key, mk)
}

func TestOpenMade(t *testing.T) {
	plain := openFunc(func(fetcher.Ref) (fetcher.Blob, error) { return memBlob("text"), nil })
	far := &keeper{openFunc: plain}
	s := fetcher.Schemes{"file": plain, "https": far}
	mk := func(_ context.Context, src fetcher.Blob) (fetcher.Blob, error) { return upper{src}, nil }
	for _, url := range []string{"file:///x", "https://x"} {
		b, err := fetcher.OpenMade(t.Context(), s, fetcher.Ref{URL: url}, "key", mk)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 4)
		if _, err := b.ReadAt(t.Context(), p, 0); err != nil || string(p) != "TEXT" {
			t.Errorf("%s: got %q, %v", url, p, err)
		}
	}
	if len(far.kept) != 1 || far.kept[0] != "key" {
		t.Errorf("kept %q, want the one of the opener that keeps", far.kept)
	}
}

// closing is a Blob that tells of its end.
type closing struct {
	memBlob
	closed *bool
}

func (c closing) Close() error {
	*c.closed = true
	return nil
}

func TestOpenMadeClosesWhatNothingIsMadeOf(t *testing.T) {
	var closed bool
	o := openFunc(func(fetcher.Ref) (fetcher.Blob, error) { return closing{memBlob("text"), &closed}, nil })
	want := errors.New("not to be made")
	b, err := fetcher.OpenMade(t.Context(), o, fetcher.Ref{}, "", func(context.Context, fetcher.Blob) (fetcher.Blob, error) { return nil, want })
	if b != nil || !errors.Is(err, want) || !closed {
		t.Errorf("got %v, %v; source closed: %t", b, err, closed)
	}
}
