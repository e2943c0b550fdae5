// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/file"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// A layerFile is a layer in a local file, taken out of the wrappers that it
// says it is in: tar, then ZFile.
type layerFile struct {
	file    fetcher.Blob
	tar     *tarblob.Payload // nil if there is no tar
	zfile   *zfile.Reader    // nil if not compressed
	content fetcher.Blob     // what is inside; closing it closes all
}

// openLayerFile opens the file and its wrappers. Where one of these cannot be
// opened, the layerFile returned with the error holds those that can.
func openLayerFile(ctx context.Context, path string) (*layerFile, error) {
	blob, err := file.Open(path)
	if err != nil {
		return nil, err
	}
	l := &layerFile{file: blob, content: blob}
	return l, l.unwrap(ctx)
}

func (l *layerFile) unwrap(ctx context.Context) error {
	inner, err := tarblob.Open(ctx, l.file)
	if errors.Is(err, errors.ErrUnsupported) {
		return noLayer(err)
	}
	if err != nil {
		return err
	}
	l.tar, _ = inner.(*tarblob.Payload)
	l.content = inner
	head, err := readHead(ctx, inner)
	if err != nil || !zfile.Detect(head) {
		return err
	}
	z, err := zfile.Open(ctx, inner)
	if err != nil {
		return l.locate(err)
	}
	l.zfile, l.content = z, z
	return nil
}

// locate adds to err, whose offsets count from the start of the ZFile, where
// in the file that is.
func (l *layerFile) locate(err error) error {
	if l.tar == nil {
		return err
	}
	return fmt.Errorf("in the tar's payload, from byte %d of the file on: %w", l.tar.Offset(), err)
}

// openLayer opens the content as a layer. It shares the content with l, which
// stays the owner.
func (l *layerFile) openLayer(ctx context.Context) (*lsmt.Layer, error) {
	head, err := readHead(ctx, l.content)
	if err != nil {
		return nil, err
	}
	if !lsmt.Detect(head) {
		return nil, noLayer(errors.New("the content is not a layer of a block image"))
	}
	layer, err := lsmt.Open(ctx, l.content)
	if err == nil {
		_, err = layer.Header(ctx) // which Open has no need of
	}
	switch {
	case err == nil:
		return layer, nil
	case writable(head):
		return nil, &adviceError{err: errors.New("the layer is writable"), advice: "Name a layer that was committed or sealed."}
	case misplaced(err):
		return nil, &adviceError{err: fmt.Errorf("%w: %w", errors.ErrUnsupported, err), advice: "" +
			"Metadata of TurboOCI looks like this and cannot be read without the layer it points into.\n" +
			"If the file is none, it is damaged: fetch or convert the layer again."}
	case l.zfile != nil:
		return nil, fmt.Errorf("in the uncompressed layer: %w", err)
	}
	return nil, l.locate(err)
}

// noLayer says of err, which is about a file of another kind, what to do.
func noLayer(err error) error {
	return &adviceError{err: err, advice: "Name a layer of a block image: those of an ordinary image must be converted first."}
}

// writable reports whether the header of a layer that has no trailer is that
// of a data or index file being written, and not that of a file cut short.
func writable(head []byte) bool {
	return len(head) >= 32 && lsmt.Flags(binary.LittleEndian.Uint32(head[28:]))&lsmt.FlagSealed == 0
}

// misplaced reports whether err is about a mapping that points to where a
// layer has no data.
func misplaced(err error) bool {
	var c *lsmt.CorruptError
	return errors.As(err, &c) && c.Field == "moffset"
}

func (l *layerFile) Close() error { return l.content.Close() }

// readHead returns as many of the first 512 bytes of b as there are.
func readHead(ctx context.Context, b fetcher.Blob) ([]byte, error) {
	head := make([]byte, min(b.Size(), 512))
	n, err := b.ReadAt(ctx, head, 0)
	if n == len(head) || errors.Is(err, io.EOF) {
		err = nil
	}
	return head[:n], err
}

// oneFile wants one argument.
func oneFile(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d files named, want one", len(args))
	}
	return nil
}
