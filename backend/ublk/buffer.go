// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

const (
	pageShift = 12
	pageSize  = 1 << pageShift
)

// classes is how many sizes buffers come in: powers of two, from a page up to
// the largest request that the driver can have.
var classes = bits.Len(driver.MaxRequest-1) - pageShift + 1

// A buffer holds the data of a request. It starts at a page boundary, so that a
// volume may read into it with O_DIRECT.
type buffer struct {
	raw   []byte
	class int
}

// buffers lends buffers to all devices of an exporter, so that an idle device
// holds none. As many are lent as requests are under way.
type buffers struct {
	pools []sync.Pool // by class
	lent  atomic.Int64
}

func newBuffers() *buffers { return &buffers{pools: make([]sync.Pool, classes)} }

// get returns a buffer for n bytes.
func (p *buffers) get(n int) *buffer {
	p.lent.Add(1)
	class := max(0, bits.Len(uint(n-1))-pageShift)
	if b, ok := p.pools[class].Get().(*buffer); ok {
		return b
	}
	size := pageSize << class
	raw := make([]byte, size+pageSize)
	skip := -address(raw) & (pageSize - 1)
	return &buffer{raw: raw[skip:][:size], class: class}
}

func (p *buffers) put(b *buffer) {
	p.lent.Add(-1)
	p.pools[b.class].Put(b)
}

// address returns where b is in memory, for the kernel.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
