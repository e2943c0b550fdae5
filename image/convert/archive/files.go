// SPDX-License-Identifier: Apache-2.0

// Package archive reads images in tar archives, those of OCI layouts and those
// of docker save, and writes the former.
//
// The one thing to know: nothing is unpacked. The archive is scanned once for
// where its files lie, and blobs are read in place.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"
)

// maxFiles bounds the files of an archive: an image has a few hundred.
const maxFiles = 1 << 16

// maxLinks bounds links that lead to links.
const maxLinks = 8

// files is the regular files of a tar, by their cleaned names.
type files struct {
	src   io.ReaderAt
	at    map[string]extent
	links map[string]string // what is found under another name
}

// An extent is where in the tar a file lies, in bytes.
type extent struct{ off, n int64 }

// A readSeekerAt is what an archive is read from.
type readSeekerAt interface {
	io.ReadSeeker
	io.ReaderAt
}

// scan finds the files of a tar.
func scan(src readSeekerAt) (*files, error) {
	f := &files{src: src, at: map[string]extent{}, links: map[string]string{}}
	for tr := tar.NewReader(src); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return f, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read tar: %w", err)
		}
		// The tar reader reads no further than to the content.
		off, err := src.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if len(f.at)+len(f.links) == maxFiles {
			return nil, fmt.Errorf("read tar: more than %d files", maxFiles)
		}
		f.add(h, off)
	}
}

func (f *files) add(h *tar.Header, off int64) {
	name := path.Clean(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
		f.at[name] = extent{off, h.Size}
	case tar.TypeSymlink: // docker save's way to have a layer twice
		f.links[name] = path.Join(path.Dir(name), h.Linkname)
	case tar.TypeLink:
		f.links[name] = path.Clean(h.Linkname)
	}
}

var _ fs.StatFS = (*files)(nil)

// Open opens a file.
func (f *files) Open(name string) (fs.File, error) {
	to := path.Clean(name)
	for range maxLinks {
		if x, ok := f.at[to]; ok {
			return &file{io.NewSectionReader(f.src, x.off, x.n), path.Base(name)}, nil
		}
		to = f.links[to]
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// Stat describes a file.
func (f *files) Stat(name string) (fs.FileInfo, error) {
	x, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	return x.Stat()
}

// A file is a file of a tar. It describes itself.
type file struct {
	*io.SectionReader
	name string
}

func (f *file) Stat() (fs.FileInfo, error) { return f, nil }
func (f *file) Close() error               { return nil }
func (f *file) Name() string               { return f.name }
func (f *file) Mode() fs.FileMode          { return 0o444 }
func (f *file) ModTime() time.Time         { return time.Time{} }
func (f *file) IsDir() bool                { return false }
func (f *file) Sys() any                   { return nil }

// openFiles opens and scans the tar called name.
func openFiles(name string) (*os.File, *files, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	found, err := openScan(f)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return f, found, nil
}

func openScan(f *os.File) (*files, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("no regular file")
	}
	head := make([]byte, 4)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if c := compression(head[:n]); c != "" {
		return nil, fmt.Errorf("the archive is compressed, with %s; decompress it first", c)
	}
	return scan(f)
}

// compression names what the first four bytes of a file are the magic of.
func compression(head []byte) string {
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return "gzip"
	case string(head) == "\x28\xb5\x2f\xfd":
		return "zstd"
	}
	return ""
}
