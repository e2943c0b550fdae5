// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"errors"
	"fmt"
	"time"
)

// Options says where and how much to cache. Only Dir must be set.
type Options struct {
	// Dir holds the cache's files and nothing else. It is created if missing,
	// and must not lie on a device that is served through the cache.
	Dir string

	// Size limits the disk space used, in bytes. Zero means 20 GiB.
	Size int64

	// MinFree is the space, in bytes, to leave free on the file system. It is
	// looked at before each write. Zero means 1 GiB, negative none.
	MinFree int64

	// BlockSize is the unit, in bytes, of what is known to be on disk: a power
	// of two from 4 KiB to 1 MiB. Zero means 16 KiB: a block is checked as a
	// whole at its first read after a restart, and has 8 bytes of record.
	BlockSize int

	// ExtentSize is what one request to the source asks for, in bytes, aligned
	// to its own size so that mirrors and peers see the same ranges from every
	// node: until the network is known, then an eighth to four times that.
	// Where reads jump about in one place, requests are four times as large. It
	// is a power of two, at least BlockSize. Zero means 256 KiB, the refill
	// size of the reference implementation.
	ExtentSize int

	// MaxExtent is what a request grows to, in bytes, while a blob is read in
	// order: a power of two from ExtentSize to 64 MiB. Zero means 4 MiB.
	MaxExtent int

	// MaxInflightBytes bounds the memory that fetches, and fetched blocks not
	// yet written to disk, hold together: at least four times MaxExtent. Zero
	// means 64 MiB. Fetches above it wait.
	MaxInflightBytes int64

	// FetchTimeout bounds one request to the source. Zero means one minute.
	FetchTimeout time.Duration
}

// maxBlobSize bounds the size, in bytes, of a blob: a manifest may claim any.
const maxBlobSize = 16 << 40

func (o *Options) setDefaults() {
	setDefault(&o.Size, 20<<30)
	setDefault(&o.MinFree, 1<<30)
	setDefault(&o.BlockSize, 16<<10)
	setDefault(&o.ExtentSize, max(256<<10, o.BlockSize))
	setDefault(&o.MaxExtent, max(4<<20, o.ExtentSize))
	setDefault(&o.MaxInflightBytes, max(64<<20, 4*int64(o.MaxExtent)))
	setDefault(&o.FetchTimeout, time.Minute)
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (o *Options) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(o.Dir != "", "no directory is named")
	check(o.Size > 0, "size of %d bytes is negative", o.Size)
	check(powerOfTwo(o.BlockSize, 4<<10, 1<<20), "block size %d is not a power of two from 4 KiB to 1 MiB", o.BlockSize)
	check(powerOfTwo(o.ExtentSize, o.BlockSize, 64<<20), "extent size %d is not a power of two from the block size to 64 MiB", o.ExtentSize)
	check(powerOfTwo(o.MaxExtent, o.ExtentSize, 64<<20), "largest extent %d is not a power of two from the extent size to 64 MiB", o.MaxExtent)
	check(o.MaxInflightBytes >= 4*int64(o.MaxExtent), "%d bytes in flight are less than four largest extents", o.MaxInflightBytes)
	check(o.FetchTimeout > 0, "fetch timeout %s is negative", o.FetchTimeout)
	return errors.Join(errs...)
}

func powerOfTwo(n, least, most int) bool {
	return n >= least && n <= most && n&(n-1) == 0
}
