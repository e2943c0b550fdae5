// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// files are the two files of a blob: data holds each block at its own offset,
// with holes for the others, and tags is the record of which blocks it holds.
type files struct{ data, tags *os.File }

const (
	dataSuffix = ".data"
	tagsSuffix = ".tags"
)

func dataName(dir string, k key) string { return filepath.Join(dir, k.hex()+dataSuffix) }
func tagsName(dir string, k key) string { return filepath.Join(dir, k.hex()+tagsSuffix) }

// openFiles opens the files of blob k if they hold what h says.
func openFiles(dir string, k key, h header) (*files, error) {
	tags, err := os.OpenFile(tagsName(dir, k), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	data, err := os.OpenFile(dataName(dir, k), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, errors.Join(err, tags.Close())
	}
	f := &files{data, tags}
	if err := f.check(h); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// recordedSize returns the size in bytes that the record of blob k says it has,
// 0 if there is none.
func recordedSize(dir string, k key) int64 {
	tags, err := os.OpenFile(tagsName(dir, k), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0
	}
	defer tags.Close()
	b := make([]byte, headerSize)
	if _, err := tags.ReadAt(b, 0); err != nil {
		return 0
	}
	h, err := parseHeader(b)
	if err != nil || h.key != k {
		return 0
	}
	return h.size
}

// check compares the record's header with want.
func (f *files) check(want header) error {
	b := make([]byte, headerSize)
	if _, err := f.tags.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	got, err := parseHeader(b)
	if err != nil {
		return fmt.Errorf("%s: %w", f.tags.Name(), err)
	}
	if got != want {
		return fmt.Errorf("%s: record of blob %s, %d bytes in blocks of %d, where %d bytes in blocks of %d are wanted",
			f.tags.Name(), got.key, got.size, got.blockSize, want.size, want.blockSize)
	}
	return nil
}

// createFiles makes new, empty files for blob k, in place of any there are.
func createFiles(dir string, k key, h header) (*files, error) {
	if err := removeFiles(dir, k); err != nil {
		return nil, err
	}
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	data, err := os.OpenFile(dataName(dir, k), flags, 0o600)
	if err != nil {
		return nil, err
	}
	tags, err := os.OpenFile(tagsName(dir, k), flags, 0o600)
	if err != nil {
		return nil, errors.Join(err, data.Close())
	}
	f := &files{data, tags}
	if _, err := tags.WriteAt(h.marshal(), 0); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// removeFiles deletes what there is of blob k, the record first.
func removeFiles(dir string, k key) error {
	return errors.Join(remove(tagsName(dir, k)), remove(dataName(dir, k)))
}

func remove(name string) error {
	if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// used returns the disk space that the files take, in bytes.
func (f *files) used() (int64, error) {
	data, err := f.data.Stat()
	if err != nil {
		return 0, err
	}
	tags, err := f.tags.Stat()
	if err != nil {
		return 0, err
	}
	return allocated(data) + allocated(tags), nil
}

// allocated returns the disk space of a file: st_blocks counts 512 bytes each.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// punch frees the disk space of bytes [off, off+n) of the data file.
func (f *files) punch(off, n int64) error {
	raw, err := f.data.SyscallConn()
	if err != nil {
		return err
	}
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	ctlErr := raw.Control(func(fd uintptr) { err = unix.Fallocate(int(fd), mode, off, n) })
	return errors.Join(ctlErr, err)
}

// clearTags says in the record that blocks [lo, hi) are not on disk.
func (f *files) clearTags(lo, hi block) error {
	_, err := f.tags.WriteAt(make([]byte, tagSize*(hi-lo)), tagOffset(lo))
	return err
}

func (f *files) close() error { return errors.Join(f.data.Close(), f.tags.Close()) }
