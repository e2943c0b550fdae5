// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"sync"
	"unsafe"
)

const pageSize = 4096

// A buffer has room for a reply: its header, and from a page boundary on, so
// that a volume may read into it with O_DIRECT, the payload. The payload may
// exceed maxRequest by the rests of two sectors.
type buffer struct {
	raw []byte // the payload starts at pageSize
}

func (b *buffer) reply(n int) []byte { return b.raw[pageSize-replyHeader : pageSize+n] }

func (b *buffer) data(n int) []byte { return b.raw[pageSize:][:n] }

// buffers lends buffers to all devices of an exporter, so that an idle device
// holds none.
type buffers struct {
	pool sync.Pool
}

func (p *buffers) get() *buffer {
	if b, ok := p.pool.Get().(*buffer); ok {
		return b
	}
	const n = pageSize + maxRequest + pageSize
	raw := make([]byte, n+pageSize)
	skip := -uintptr(unsafe.Pointer(&raw[0])) & (pageSize - 1)
	return &buffer{raw: raw[skip:][:n]}
}

func (p *buffers) put(b *buffer) { p.pool.Put(b) }
