// SPDX-License-Identifier: Apache-2.0

package build

import (
	"hash"
	"io"
	"sync"
)

// pieces of pieceSize bytes are what a pump reads ahead.
const (
	pieceSize = 256 << 10
	pieces    = 8
)

// A pump reads a stream ahead in a goroutine of its own, so that decompressing
// and hashing go on while what came before is applied.
type pump struct {
	full, empty chan []byte
	stop        chan struct{} // closed by close
	err         error         // why full was closed; read after that
	rest        []byte        // of the piece being read
	piece       []byte
	running     sync.WaitGroup
}

// newPump returns a pump of r that writes all it reads to h. It must be closed.
func newPump(r io.Reader, h hash.Hash) *pump {
	p := &pump{full: make(chan []byte, pieces), empty: make(chan []byte, pieces), stop: make(chan struct{})}
	for range pieces {
		p.empty <- make([]byte, pieceSize)
	}
	p.running.Go(func() {
		defer close(p.full)
		p.err = p.run(r, h)
	})
	return p
}

func (p *pump) run(r io.Reader, h hash.Hash) error {
	for {
		select {
		case <-p.stop:
			return nil
		case buf := <-p.empty:
			n, err := fill(r, buf[:pieceSize])
			h.Write(buf[:n])
			p.full <- buf[:n] // it has room for every piece
			if err != nil {
				return err
			}
		}
	}
}

// fill reads until p is full or r fails. It is io.ReadFull, but for keeping the
// end of a stream and a stream cut short apart.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = r.Read(p[n:])
		n += k
	}
	return n, err
}

func (p *pump) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.piece != nil {
			p.empty <- p.piece
			p.piece = nil
		}
		piece, ok := <-p.full
		if !ok {
			return 0, p.err
		}
		p.piece, p.rest = piece, piece
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// close waits until the stream is no longer read, which its source must be able
// to end.
func (p *pump) close() {
	close(p.stop)
	p.running.Wait()
}
