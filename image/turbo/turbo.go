// SPDX-License-Identifier: Apache-2.0

// Package turbo knows the files of a TurboOCI layer: the metadata of a file
// system, a layer of blocks whose other blocks lie in an ordinary layer, and an
// index of that if it is compressed. In a registry they are a tar, compressed
// with gzip.
package turbo

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// The names of the files. Durable.
const (
	MetaSuffix = ".fs.meta"     // of the metadata, behind the file system's name
	GzipIndex  = "gzip.meta"    // of a target that is compressed with gzip
	ZstdIndex  = "zstd.meta"    // or with zstd; ours
	Mark       = ".turbo.ociv1" // empty
)

// fileNames are all that is unpacked.
var fileNames = []string{"ext4" + MetaSuffix, "erofs" + MetaSuffix, GzipIndex, ZstdIndex, Mark}

// maxEntries bounds the entries of a layer's archive.
const maxEntries = 100

// Unpack writes the files of the layer r, which has size bytes and the digest
// dgst, into the empty directory dir, and syncs them, but not the directory: they
// are to be moved to where they belong. It reads r to its end; after an error there
// may be files whose content is anything.
func Unpack(r io.Reader, dgst digest.Digest, size int64, dir string) error {
	v := &verifier{r: r, left: size, digester: dgst.Algorithm().Digester()}
	if err := unpackAll(v, dir, unpackedLimit(size)); err != nil {
		return err
	}
	return v.finish(dgst)
}

// unpackedLimit is how many bytes a layer of size bytes may unpack to: metadata
// are compressed already, and an index as well as it can be.
func unpackedLimit(size int64) int64 { return 16*size + 1<<20 }

// unpackAll unpacks a tar that need not be compressed. Entries that no layer needs
// are skipped; all together may hold limit bytes.
func unpackAll(r io.Reader, dir string, limit int64) error {
	content, err := decompress(r)
	if err != nil {
		return err
	}
	bounded := &io.LimitedReader{R: content, N: limit + 1}
	err = unpack(tar.NewReader(bounded), dir, limit)
	if err == nil {
		_, err = io.Copy(io.Discard, bounded) // what lies behind the end of the tar
	}
	if bounded.N == 0 {
		return tooMuch(limit)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	return err
}

func decompress(r io.Reader) (io.Reader, error) {
	buf := bufio.NewReader(r)
	head, err := buf.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if bytes.Equal(head, []byte{0x1f, 0x8b}) {
		return gzip.NewReader(buf)
	}
	return buf, nil
}

func tooMuch(limit int64) error { return fmt.Errorf("it holds more than %d bytes", limit) }

// unpack writes files of limit bytes at most: where they have holes, that is more
// than is read.
func unpack(tr *tar.Reader, dir string, limit int64) error {
	left := limit
	for range maxEntries {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if !slices.Contains(fileNames, name) {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("%s is not a regular file", name)
		}
		if left -= h.Size; left < 0 {
			return tooMuch(limit)
		}
		if err := writeFile(filepath.Join(dir, name), tr); err != nil {
			return err
		}
	}
	return fmt.Errorf("it has more than %d entries", maxEntries)
}

// writeFile writes a file that must not be there yet.
func writeFile(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, r)
	if n > 0 {
		err = errors.Join(err, f.Sync())
	}
	return errors.Join(err, f.Close())
}

// A verifier reads a blob of a known size, and computes its digest.
type verifier struct {
	r        io.Reader
	left     int64
	digester digest.Digester
}

var errLonger = errors.New("it is longer than its descriptor says")

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	if v.left -= int64(n); v.left < 0 {
		return 0, errLonger
	}
	_, _ = v.digester.Hash().Write(p[:n])
	return n, err
}

// finish compares what was read, which must be all, with the digest want.
func (v *verifier) finish(want digest.Digest) error {
	if got := v.digester.Digest(); got != want {
		return fmt.Errorf("its content is %s", got)
	}
	return nil
}
