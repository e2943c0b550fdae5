// SPDX-License-Identifier: Apache-2.0

package fetchertest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Open opens a blob that is closed when the test ends.
func Open(t testing.TB, o fetcher.Opener, ref fetcher.Ref) fetcher.Blob {
	t.Helper()
	b, err := o.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// Want reads n bytes at off, which must be those of content.
func Want(t testing.TB, b fetcher.Blob, content []byte, off, n int) {
	t.Helper()
	p := make([]byte, n)
	got, err := b.ReadAt(t.Context(), p, int64(off))
	if got != n || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("ReadAt(%d bytes at %d) = %d, %v", n, off, got, err)
	}
	if !bytes.Equal(p, content[off:off+n]) {
		t.Fatalf("ReadAt(%d bytes at %d) got other bytes", n, off)
	}
}
