// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// A partial is a file being made, without a name.
type partial struct {
	f       *os.File
	sum     hash.Hash
	n       int64 // bytes written, from the start on
	flushed int64 // bytes on disk
}

// flushEvery bounds what is written but not on disk, in bytes, so that neither
// the last flush nor that of somebody else takes long.
const flushEvery = 32 << 20

var errNoRoom = fmt.Errorf("it would leave less than cache.min_free: %w", unix.ENOSPC)

// create makes a file for size bytes on the file system of dir, and takes the
// space at once: what does not fit should not be fetched.
func create(dir string, size, minFree int64) (*partial, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a file without a name: %w", err)
	}
	if err := reserve(f, size, minFree); err != nil {
		return nil, errors.Join(fmt.Errorf("make room for %d bytes in %s: %w", size, dir, err), f.Close())
	}
	return &partial{f: f, sum: sha256.New()}, nil
}

func reserve(f *os.File, size, minFree int64) error {
	fd := int(f.Fd())
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if int64(st.Bavail)*st.Bsize-size < minFree {
		return errNoRoom
	}
	if size == 0 {
		return nil
	}
	err := unix.Fallocate(fd, 0, 0, size)
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(fd, 0, 0, size)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // it will show
	}
	return err
}

// readFunc reads as fetcher.Blob's ReadAt does.
type readFunc func(ctx context.Context, p []byte, off int64) (int, error)

// fill writes what is missing of size bytes, one read of at most len(buf) at a
// time, and calls wrote after each.
func (p *partial) fill(ctx context.Context, read readFunc, size int64, buf []byte, wrote func(n int64)) error {
	for p.n < size {
		b := buf[:min(int64(len(buf)), size-p.n)]
		n, err := read(ctx, b, p.n)
		if e := p.write(b[:n]); e != nil {
			return e
		}
		wrote(p.n)
		switch {
		case n == len(b):
		case err == nil || errors.Is(err, io.EOF):
			return fmt.Errorf("it ends at %d, not %d: %w", p.n, size, io.ErrUnexpectedEOF)
		default:
			return err
		}
	}
	return nil
}

func (p *partial) write(b []byte) error {
	p.sum.Write(b)
	n, err := p.f.WriteAt(b, p.n)
	p.n += int64(n)
	if err != nil || p.n-p.flushed < flushEvery {
		return err
	}
	return p.flush()
}

// flush puts what was written on disk, and out of memory: others need that
// more.
func (p *partial) flush() error {
	fd := int(p.f.Fd())
	if err := p.f.Sync(); err != nil {
		return err
	}
	_ = unix.Fadvise(fd, p.flushed, p.n-p.flushed, unix.FADV_DONTNEED)
	p.flushed = p.n
	return nil
}

func (p *partial) digest() digest.Digest { return digest.NewDigest(digest.SHA256, p.sum) }

// path names the file while it has no other name.
func (p *partial) path() string { return fmt.Sprintf("/proc/self/fd/%d", p.f.Fd()) }

func (p *partial) close() error { return p.f.Close() }

// link gives the file at old the name path as well, durably. A file that has
// that name already keeps it.
func link(old, path string) error {
	err := unix.Linkat(unix.AT_FDCWD, old, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: old, New: path, Err: err}
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
