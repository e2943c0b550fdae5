// SPDX-License-Identifier: Apache-2.0

package zfile

import (
	"math/bits"
	"sync"
)

// Buffers are pooled by size class, powers of two from 8 KiB, which holds a
// 4 KiB block however badly it compressed, to 1 MiB, the longest run.
const (
	minClass = 13
	maxClass = 20
)

var pools [maxClass - minClass + 1]sync.Pool

// A buffer is n bytes on loan from the pools.
type buffer struct {
	b     []byte
	class int
}

// lend returns a buffer of n bytes, at most 1<<maxClass. give returns it.
func lend(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minClass) - minClass
	b, ok := pools[class].Get().(*buffer)
	if !ok {
		b = &buffer{make([]byte, 1<<(class+minClass)), class}
	}
	b.b = b.b[:n]
	return b
}

func (b *buffer) give() { pools[b.class].Put(b) }
