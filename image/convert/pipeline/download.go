// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pieces of pieceSize bytes are what a download is ahead of its reader: enough
// to keep a line of 1 Gb/s busy for 60 ms, the while a layer takes to be sealed.
const (
	pieceSize = 1 << 20
	pieces    = 8
)

// A download is a blob that arrives ahead of who reads it. At its end it is
// known to be what its descriptor says.
type download struct {
	ctx    context.Context //nolint:containedctx // lives as long as one download
	cancel context.CancelFunc
	full   chan []byte
	empty  chan []byte
	work   sync.WaitGroup

	err   error // why full was closed; read after that
	piece []byte
	rest  []byte
}

// newDownload starts a download, which must be closed. progress is told how
// many bytes have come.
func newDownload(ctx context.Context, src Source, desc ocispec.Descriptor, progress func(done int64)) *download {
	d := &download{full: make(chan []byte, pieces), empty: make(chan []byte, pieces)}
	d.ctx, d.cancel = context.WithCancel(ctx)
	for range pieces {
		d.empty <- nil // allocated when it is needed: most layers are small
	}
	d.work.Go(func() {
		defer close(d.full)
		if d.err = d.run(src, desc, progress); d.err == nil {
			d.err = io.EOF
		}
	})
	return d
}

func (d *download) run(src Source, desc ocispec.Descriptor, progress func(int64)) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", string(desc.Digest), err)
	}
	r, err := src.Open(d.ctx, desc)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	defer r.Close()
	digester := desc.Digest.Algorithm().Digester()
	var done int64
	for {
		n, err := d.fetch(r, digester)
		if done += n; done > desc.Size {
			return fmt.Errorf("download: it is larger than the %d bytes that the manifest says", desc.Size)
		}
		if n > 0 {
			progress(done)
		}
		if err == io.EOF { //nolint:errorlint // wrapped, it would be a broken stream
			break
		}
		if err != nil {
			return fmt.Errorf("download: at byte %d of %d: %w", done, desc.Size, err)
		}
	}
	if got := digester.Digest(); done != desc.Size || got != desc.Digest {
		return fmt.Errorf("download: the content of %d bytes has digest %s; the manifest says %d bytes, %s", done, got, desc.Size, desc.Digest)
	}
	return nil
}

// fetch passes on the next piece.
func (d *download) fetch(r io.Reader, digester digest.Digester) (int64, error) {
	var p []byte
	select {
	case p = <-d.empty:
	case <-d.ctx.Done():
		return 0, context.Cause(d.ctx)
	}
	if p == nil {
		p = make([]byte, pieceSize)
	}
	var n int
	var err error
	for n < pieceSize && err == nil {
		var k int
		k, err = r.Read(p[n:pieceSize])
		n += k
	}
	digester.Hash().Write(p[:n])
	d.full <- p[:n] // it has room for every piece
	return int64(n), err
}

// Read reads what has come.
func (d *download) Read(p []byte) (int, error) {
	for len(d.rest) == 0 {
		if d.piece != nil {
			d.empty <- d.piece
			d.piece = nil
		}
		select {
		case piece, ok := <-d.full:
			if !ok {
				return 0, d.err
			}
			d.piece, d.rest = piece, piece
		case <-d.ctx.Done():
			return 0, context.Cause(d.ctx)
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// close ends the download and waits until nothing more of it is read.
func (d *download) close() {
	d.cancel()
	d.work.Wait()
}
