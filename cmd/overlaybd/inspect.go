// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

func inspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a layer file holds",
		Long: `Show what a layer file holds: the tar it is wrapped in, its compression, and
the layer inside. Each is recognised by its content, whatever the file's name.

Only headers and indexes are read: 'overlaybd verify' checks the rest.`,
		Example: `  overlaybd inspect overlaybd.commit
  overlaybd inspect --json overlaybd.commit | jq .layer.uuid`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspect(cmd.Context(), cmd.OutOrStdout(), args[0], asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// inspect describes the file at path. A file that can be opened in part is
// described in part, besides the error.
func inspect(ctx context.Context, w io.Writer, path string, asJSON bool) error {
	l, err := openLayerFile(ctx, path)
	if l == nil {
		return err
	}
	defer func() { _ = l.Close() }() // it was only read
	d := describe(path, l)
	if err == nil {
		d.Layer, err = inspectLayer(ctx, l)
	}
	text := d.String()
	if asJSON {
		text = toJSON(d)
	}
	if _, werr := io.WriteString(w, text); err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("inspect %s: %w", path, err)
	}
	return nil
}

// A description is what inspect shows.
type description struct {
	File  string            `json:"file"`
	Size  int64             `json:"size"` // bytes
	Tar   *tarDescription   `json:"tar,omitempty"`
	ZFile *zfile.Info       `json:"zfile,omitempty"`
	Layer *layerDescription `json:"layer,omitempty"`
}

type tarDescription struct {
	PayloadOffset int64 `json:"payloadOffset"` // bytes
	PayloadSize   int64 `json:"payloadSize"`   // bytes
}

type layerDescription struct {
	VirtualSize int64  `json:"virtualSize"` // bytes
	UUID        string `json:"uuid"`
	ParentUUID  string `json:"parentUUID"`
	UserTag     string `json:"userTag,omitempty"`

	Mappings    int64 `json:"mappings"`    // data and zeroed
	Zeroed      int64 `json:"zeroed"`      // mappings that read as zeros
	DataBytes   int64 `json:"dataBytes"`   // of the volume, stored
	ZeroedBytes int64 `json:"zeroedBytes"` // of the volume, not stored

	Header  headerDescription `json:"header"`
	Trailer headerDescription `json:"trailer"`
}

type headerDescription struct {
	Flags        uint32 `json:"flags"`
	IndexOffset  int64  `json:"indexOffset"`  // bytes
	IndexRecords int64  `json:"indexRecords"` // padding included
	VirtualSize  int64  `json:"virtualSize"`  // bytes
	UUID         string `json:"uuid"`
	ParentUUID   string `json:"parentUUID"`
}

// describe describes l without its layer.
func describe(path string, l *layerFile) *description {
	d := &description{File: path, Size: l.file.Size()}
	if l.tar != nil {
		d.Tar = &tarDescription{l.tar.Offset(), l.tar.Size()}
	}
	if l.zfile != nil {
		info := l.zfile.Info()
		d.ZFile = &info
	}
	return d
}

func inspectLayer(ctx context.Context, l *layerFile) (*layerDescription, error) {
	layer, err := l.openLayer(ctx)
	if err != nil {
		return nil, err
	}
	t := layer.Trailer()
	h, err := layer.Header(ctx)
	if err != nil {
		return nil, err
	}
	d := &layerDescription{
		VirtualSize: layer.VirtualSize(), UUID: t.UUID, ParentUUID: t.ParentUUID, UserTag: t.UserTag,
		Header: describeHeader(h), Trailer: describeHeader(t),
	}
	for m := range layer.Mappings() {
		n := int64(m.Sectors * lsmt.SectorSize)
		d.Mappings++
		if m.Zeroed {
			d.Zeroed++
			d.ZeroedBytes += n
		} else {
			d.DataBytes += n
		}
	}
	return d, nil
}

func describeHeader(h lsmt.Header) headerDescription {
	return headerDescription{uint32(h.Flags), h.IndexOffset, h.IndexRecords, h.VirtualSize, h.UUID, h.ParentUUID}
}

// String returns d as a table.
func (d *description) String() string {
	var t strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&t, "%-13s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("file", "%s", printable(d.File))
	row("size", "%s", size(d.Size))
	if d.Tar != nil {
		row("tar", "payload of %s at byte %d", size(d.Tar.PayloadSize), d.Tar.PayloadOffset)
	}
	if z := d.ZFile; z != nil {
		row("compression", "%s, %d blocks of %s", z.Algorithm, z.Blocks, size(int64(z.BlockSize)))
		row("uncompressed", "%s, stored as %s", size(z.Size), size(z.CompressedSize))
		row("checksums", "%s", checksums(z))
	}
	if d.Layer != nil {
		d.Layer.rows(row)
	}
	return t.String()
}

func (l *layerDescription) rows(row func(name, format string, args ...any)) {
	if l.VirtualSize == 0 {
		row("volume", "as large as that of the layer below")
	} else {
		row("volume", "%s", size(l.VirtualSize))
	}
	row("uuid", "%s", uuid(l.UUID))
	row("parent uuid", "%s", uuid(l.ParentUUID))
	if l.UserTag != "" {
		row("user tag", "%s", printable(l.UserTag))
	}
	row("data", "%s in %d mappings", size(l.DataBytes), l.Mappings-l.Zeroed)
	row("zeroed", "%s in %d mappings", size(l.ZeroedBytes), l.Zeroed)
	row("index", "%d records at byte %d", l.Trailer.IndexRecords, l.Trailer.IndexOffset)
	if l.Header.UUID != l.UUID || l.Header.ParentUUID != l.ParentUUID || l.Header.VirtualSize != l.VirtualSize {
		row("header", "differs: volume %s, uuid %s, parent uuid %s",
			size(l.Header.VirtualSize), uuid(l.Header.UUID), uuid(l.Header.ParentUUID))
	}
}

func checksums(z *zfile.Info) string {
	switch {
	case z.Checksums && z.Digests:
		return "every block, header and index"
	case z.Checksums:
		return "every block"
	case z.Digests:
		return "header and index"
	}
	return "none"
}
