// SPDX-License-Identifier: Apache-2.0

package tarblob

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// WriteHeaders writes the dump of the headers of archive to w: all that it takes
// to make the files' metadata, and where their content is. It reads no further
// than to the end of the archive. Errors about what it holds are of the class
// ErrCorrupt.
func WriteHeaders(w io.Writer, archive io.Reader) error {
	s := &scanner{r: archive}
	for {
		e, err := s.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.regular() {
			binary.LittleEndian.PutUint64(e.header()[bodyOff:], uint64(s.pos))
		}
		if _, err := w.Write(e.blocks); err != nil {
			return err
		}
		if err := s.skip(e); err != nil {
			return err
		}
	}
}

// skip reads past the body of e.
func (s *scanner) skip(e *entry) error {
	n, err := io.CopyN(io.Discard, s.r, e.size+padding(e.size))
	s.pos += n
	if errors.Is(err, io.EOF) && n >= e.size {
		return nil // the last padding may be missing
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read tar at byte %d: %w", s.pos, err)
	}
	return nil
}

// A HeaderReader reads the dump of a tar's headers.
type HeaderReader struct {
	s   scanner
	err error
}

// NewHeaderReader returns a reader of the dump r.
func NewHeaderReader(r io.Reader) *HeaderReader {
	return &HeaderReader{s: scanner{r: r, dumps: true}}
}

// Next returns the header of the next file, and the offset of its content in the
// tar, in bytes, or -1 if it is of a type that has none. It returns io.EOF at
// the end. The error is of class ErrCorrupt where the dump contradicts itself,
// and errors.ErrUnsupported for files that are stored sparsely.
func (h *HeaderReader) Next() (*tar.Header, int64, error) {
	if h.err != nil {
		return nil, 0, h.err
	}
	header, off, err := h.next()
	h.err = err
	return header, off, err
}

func (h *HeaderReader) next() (*tar.Header, int64, error) {
	e, err := h.s.next()
	if err != nil {
		return nil, 0, err
	}
	off := int64(-1)
	if e.regular() {
		if off, err = h.body(e); err != nil {
			return nil, 0, err
		}
	}
	if e.sparse {
		return nil, 0, fmt.Errorf("sparse file before byte %d of a tar: %w", h.s.pos, errors.ErrUnsupported)
	}
	header, err := e.parse()
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("%w: headers before byte %d: %w", ErrCorrupt, h.s.pos, err)
	case header.Typeflag != tar.TypeReg:
		off = -1 // a directory of old
	case header.Size != e.size:
		return nil, 0, fmt.Errorf("%w: file %q has %d bytes or %d", ErrCorrupt, header.Name, e.size, header.Size)
	}
	if h.s.pos += e.size + padding(e.size); h.s.pos < 0 || h.s.pos > maxTar {
		return nil, 0, fmt.Errorf("%w: file %q of %d bytes ends behind byte %d", ErrCorrupt, header.Name, e.size, int64(maxTar))
	}
	return header, off, nil
}

// maxTar bounds the tar that a dump is about, in bytes.
const maxTar = 1 << 60

// parse returns what the headers of e say.
func (e *entry) parse() (*tar.Header, error) {
	if e.regular() {
		clear(e.header()[bodyOff:][:bodyLen])
	}
	n, _ := sums(e.header())
	copy(e.header()[checksumOff:], fmt.Sprintf("%06o\x00 ", n))
	r := tar.NewReader(bytes.NewReader(e.blocks))
	for {
		header, err := r.Next()
		if err != nil || header.Typeflag != tar.TypeXGlobalHeader {
			return header, err
		}
	}
}

// body returns the offset of the body of e, which must be where the headers and
// bodies before it put it.
func (h *HeaderReader) body(e *entry) (int64, error) {
	off := int64(binary.LittleEndian.Uint64(e.header()[bodyOff:]))
	if off != h.s.pos {
		return 0, fmt.Errorf("%w: body at byte %d of the tar, where what is before it ends at %d", ErrCorrupt, off, h.s.pos)
	}
	return off, nil
}
