// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// The files of a turbo layer's tar. Durable.
const (
	metaSuffix = ".fs.meta"     // after the file system's name: the layer
	turboMark  = ".turbo.ociv1" // empty
	indexEnd   = ".meta"        // after the compression's name: the target's index
)

// maxMeta bounds what is unpacked of a turbo layer's blob, in bytes: the
// metadata of many millions of files.
const maxMeta = 4 << 30

// TurboOptions say what the blob of a turbo layer is made like.
type TurboOptions struct {
	FSType      string // of the file system, such as "ext4"
	Compression zfile.Options

	// TempDir holds the blob until it is closed; os.TempDir if empty.
	TempDir string
}

// A TurboWriter writes a sealed layer that maps into its target to layer, and
// the target's index, if it is compressed, to index. It returns with what it
// is compressed: "gzip", "zstd", or nothing.
type TurboWriter func(layer, index io.Writer) (compression string, err error)

// A Meta is what the blob of a turbo layer holds, without the target's index.
// It lies in a file without a name.
type Meta struct {
	f      *os.File
	size   int64
	fsType string

	// DiffID is the digest of the blob's tar.
	DiffID digest.Digest

	// Compression of the target: "gzip", "zstd", or empty for none.
	Compression string
}

// Layer returns what the layer is opened from. It can be read until m is
// closed; closing it does nothing.
func (m *Meta) Layer() fetcher.Blob { return view{m.f, m.size} }

// Close gives up the file.
func (m *Meta) Close() error { return m.f.Close() }

// NewTurboBlob makes the blob of the turbo layer that write writes: a tar,
// compressed by gzip, of
//
//	FSTYPE.fs.meta              the layer, compressed
//	.turbo.ociv1                empty
//	gzip.meta or zstd.meta      the target's index, if it is compressed
//
// as the reference has it; zstd.meta is ours. The blob is a function of what
// is written and of the options.
func NewTurboBlob(write TurboWriter, opts TurboOptions) (_ *Blob, err error) {
	b, err := tempBlob(opts.TempDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	index, err := tempFile(opts.TempDir)
	if err != nil {
		return nil, err
	}
	defer index.Close()
	if b.meta, err = newMeta(write, index, opts); err != nil {
		return nil, err
	}
	return b, b.pack(index)
}

// newMeta has the layer and the index written.
func newMeta(write TurboWriter, index *os.File, opts TurboOptions) (_ *Meta, err error) {
	f, err := tempFile(opts.TempDir)
	if err != nil {
		return nil, err
	}
	m := &Meta{f: f, fsType: opts.FSType}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	out, side := bufio.NewWriterSize(f, 1<<20), bufio.NewWriterSize(index, 64<<10)
	z, err := zfile.NewWriter(out, opts.Compression)
	if err != nil {
		return nil, err
	}
	if m.Compression, err = write(z, side); err != nil {
		_ = z.Close() // what is under way in it ends; the error is known
		return nil, err
	}
	if err := errors.Join(z.Close(), out.Flush(), side.Flush()); err != nil {
		return nil, err
	}
	m.size, err = f.Seek(0, io.SeekCurrent)
	return m, err
}

// pack writes the compressed tar, and computes both digests meanwhile.
func (b *Blob) pack(index *os.File) error {
	indexSize, err := index.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	sum, diffID := digest.SHA256.Digester(), digest.SHA256.Digester()
	buf := bufio.NewWriterSize(io.MultiWriter(b.f, sum.Hash()), 256<<10)
	z := gzip.NewWriter(buf)
	w := tar.NewWriter(io.MultiWriter(z, diffID.Hash()))
	err = addFile(w, b.meta.fsType+metaSuffix, b.meta.f, b.meta.size)
	if err == nil {
		err = addFile(w, turboMark, nil, 0)
	}
	if c := b.meta.Compression; err == nil && c != "" {
		err = addFile(w, c+indexEnd, index, indexSize)
	}
	if err := errors.Join(err, w.Close(), z.Close(), buf.Flush()); err != nil {
		return err
	}
	b.digest, b.meta.DiffID = sum.Digest(), diffID.Digest()
	b.size, err = b.f.Seek(0, io.SeekCurrent)
	return err
}

// addFile adds a file to the tar. Its header says no more than it must: who
// made it, and when, would make other bytes of the same layer.
func addFile(w *tar.Writer, name string, content io.ReaderAt, size int64) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	if size == 0 {
		return nil
	}
	_, err := io.Copy(w, io.NewSectionReader(content, 0, size))
	return err
}

// ReadMeta unpacks the blob of a turbo layer, which must have the digest, and
// hold a file system of the type. TempDir holds what it returns.
func ReadMeta(blob io.Reader, dgst digest.Digest, fsType, tempDir string) (_ *Meta, err error) {
	f, err := tempFile(tempDir)
	if err != nil {
		return nil, err
	}
	m := &Meta{f: f, fsType: fsType}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("unpack turbo layer %s: %w", dgst, err), f.Close())
		}
	}()
	if err := dgst.Validate(); err != nil {
		return nil, err
	}
	sum, diffID := dgst.Algorithm().Digester(), digest.SHA256.Digester()
	raw := io.TeeReader(blob, sum.Hash())
	z, err := gzip.NewReader(bufio.NewReader(raw))
	if err != nil {
		return nil, err
	}
	content := io.TeeReader(&io.LimitedReader{R: z, N: maxMeta}, diffID.Hash())
	if err := m.unpack(tar.NewReader(content)); err != nil {
		return nil, err
	}
	// The digests are of all that is there.
	if _, err := io.Copy(io.Discard, content); err != nil {
		return nil, err
	}
	if n, err := z.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("it unpacks to more than %d bytes", int64(maxMeta))
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return nil, err
	}
	if got := sum.Digest(); got != dgst {
		return nil, fmt.Errorf("its digest is %s", got)
	}
	m.DiffID = diffID.Digest()
	return m, nil
}

// unpack takes what is needed of the tar.
func (m *Meta) unpack(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch h.Name {
		case m.fsType + metaSuffix:
			if m.size > 0 {
				return fmt.Errorf("it has %s twice", h.Name)
			}
			if m.size, err = io.Copy(m.f, r); err != nil {
				return err
			}
		case "gzip" + indexEnd, "zstd" + indexEnd:
			m.Compression = strings.TrimSuffix(h.Name, indexEnd)
		}
	}
	if m.size == 0 {
		return fmt.Errorf("it has no %s", m.fsType+metaSuffix)
	}
	return nil
}
