// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/tarblob"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

func verifyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check every byte of a layer file",
		Long: `Check a layer file whole: its tar header, every compressed block and its
checksum, and every mapping of the layer. The first fault is reported with the
byte it was found at, counted in what the message names: the ZFile, or the
uncompressed layer.

A layer without checksums is read whole, but only its structure can be checked;
the result says so. Compare the digest of such a file with its manifest.

Exit status: 0 if the file is sound, 1 if it is damaged or cannot be read, 2 if
the command line is wrong.`,
		Example: `  overlaybd verify overlaybd.commit
  overlaybd verify --json overlaybd.commit || rm overlaybd.commit`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			bar := newProgress(cmd.ErrOrStderr(), args[0])
			v, err := verify(cmd.Context(), args[0], bar.show)
			bar.clear()
			text := v.String()
			if asJSON {
				text = toJSON(v)
			}
			if _, werr := io.WriteString(cmd.OutOrStdout(), text); err == nil {
				err = werr
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// A verdict is what verify found.
type verdict struct {
	File        string   `json:"file"`
	Sound       bool     `json:"sound"`
	Damaged     bool     `json:"damaged"` // false if it is not sound for another reason
	Error       string   `json:"error,omitempty"`
	Checksummed bool     `json:"checksummed"` // every byte of content has one
	Bytes       int64    `json:"bytes"`       // uncompressed
	Blocks      int64    `json:"blocks"`
	Mappings    int64    `json:"mappings"`
	Warnings    []string `json:"warnings,omitempty"`
}

// verify checks the file at path. The verdict is never nil.
func verify(ctx context.Context, path string, progress func(done, total int64)) (*verdict, error) {
	v := &verdict{File: path}
	err := v.check(ctx, path, progress)
	v.Sound = err == nil
	if err == nil {
		return v, nil
	}
	err = fmt.Errorf("verify %s: %w", path, err)
	v.Error = err.Error()
	v.Damaged = damage(err)
	if v.Damaged {
		err = &adviceError{err: err, advice: "The file is damaged: fetch or convert the layer again."}
	}
	return v, err
}

// damage reports whether err tells of bytes that are not what was written.
func damage(err error) bool {
	corrupt := errors.Is(err, zfile.ErrCorrupt) || errors.Is(err, lsmt.ErrCorrupt) || errors.Is(err, tarblob.ErrCorrupt)
	return corrupt && !errors.Is(err, errors.ErrUnsupported)
}

func (v *verdict) check(ctx context.Context, path string, progress func(done, total int64)) error {
	l, err := openLayerFile(ctx, path)
	if l == nil {
		return err
	}
	defer func() { _ = l.Close() }() // it was only read
	if err != nil {
		return err
	}
	v.Bytes = l.content.Size()
	if err := v.checkBytes(ctx, l, progress); err != nil {
		return err
	}
	layer, err := l.openLayer(ctx)
	if err != nil {
		return err
	}
	h, err := layer.Header(ctx)
	if err != nil {
		return err
	}
	v.checkMappings(layer, h)
	return nil
}

// checkBytes reads all there is to read.
func (v *verdict) checkBytes(ctx context.Context, l *layerFile, progress func(done, total int64)) error {
	if l.zfile != nil {
		info := l.zfile.Info()
		v.Blocks, v.Checksummed = info.Blocks, info.Checksums
		if err := l.zfile.Verify(ctx, progress); err != nil {
			return l.locate(err)
		}
		return nil
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < l.content.Size(); {
		n, err := l.content.ReadAt(ctx, buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read at byte %d: %w", off, err)
		}
		if n == 0 {
			return fmt.Errorf("read at byte %d: %w", off, io.ErrUnexpectedEOF)
		}
		off += int64(n)
		progress(off, l.content.Size())
	}
	return nil
}

// checkMappings holds the mappings, whose order and sources Open has checked,
// against the volume, and the names in the trailer against the header h.
func (v *verdict) checkMappings(layer *lsmt.Layer, h lsmt.Header) {
	var beyond int64
	for m := range layer.Mappings() {
		v.Mappings++
		if end := layer.VirtualSize() / lsmt.SectorSize; end > 0 && m.LBA+m.Sectors > uint64(end) {
			beyond++
		}
	}
	if beyond > 0 {
		v.Warnings = append(v.Warnings, fmt.Sprintf("%d mappings reach past the end of the volume", beyond))
	}
	if t := layer.Trailer(); h.UUID != t.UUID || h.ParentUUID != t.ParentUUID {
		v.Warnings = append(v.Warnings, "the UUIDs of header and trailer differ")
	}
	if !v.Checksummed {
		v.Warnings = append(v.Warnings, "the layer carries no checksums: only its structure could be checked")
	}
}

// String returns what there is to say of a sound file: a fault is an error.
func (v *verdict) String() string {
	if !v.Sound {
		return ""
	}
	var t strings.Builder
	fmt.Fprintf(&t, "%s: sound: %s", printable(v.File), size(v.Bytes))
	if v.Blocks > 0 {
		fmt.Fprintf(&t, " in %d blocks", v.Blocks)
	}
	fmt.Fprintf(&t, ", %d mappings\n", v.Mappings)
	for _, warning := range v.Warnings {
		fmt.Fprintf(&t, "%s: warning: %s\n", printable(v.File), warning)
	}
	return t.String()
}
