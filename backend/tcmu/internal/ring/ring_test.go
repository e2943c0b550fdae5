// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"unsafe"
)

var ne = binary.NativeEndian

// A fakeKernel fills a ring of its own as the kernel does.
type fakeKernel struct {
	mem     []byte
	size    uint32 // of the command ring
	head    uint32
	cleaned uint32 // up to where answers are taken
}

const (
	cmdrOff  = 128
	dataSize = 4096
)

// newKernel makes a ring of size bytes, followed by data.
func newKernel(size uint32) *fakeKernel {
	k := &fakeKernel{mem: aligned(cmdrOff + int(size) + dataSize), size: size}
	ne.PutUint16(k.mem, version)
	ne.PutUint16(k.mem[2:], 0xf)
	ne.PutUint32(k.mem[offCmdrOff:], cmdrOff)
	ne.PutUint32(k.mem[offCmdrSize:], size)
	for i := range dataSize {
		k.mem[k.data()+i] = byte(i)
	}
	return k
}

// aligned returns n bytes aligned to 8.
func aligned(n int) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&make([]uint64, n/8+1)[0])), n)
}

func (k *fakeKernel) data() int { return cmdrOff + int(k.size) }

// room returns how many bytes of the ring are free.
func (k *fakeKernel) room() uint32 {
	return (k.cleaned - k.head + k.size - 8) % k.size
}

// put adds an entry of n bytes, after padding if it would wrap.
func (k *fakeKernel) put(op, n uint32, id uint16, iov ...[2]uint64) bool {
	if left := k.size - k.head; left < n {
		if k.room() < left+n {
			return false
		}
		k.add(left|opPad, left)
	}
	if k.room() < n {
		return false
	}
	e := k.mem[cmdrOff+k.head:]
	clear(e[:n])
	ne.PutUint16(e[4:], id)
	if op == opCommand {
		ne.PutUint32(e[offIovCount:], uint32(len(iov)))
		cdb := offIov + iovSize*len(iov)
		ne.PutUint64(e[offCDB:], uint64(cmdrOff+int(k.head)+cdb))
		for i, v := range iov {
			ne.PutUint64(e[offIov+i*iovSize:], v[0])
			ne.PutUint64(e[offIov+i*iovSize+8:], v[1])
		}
		copy(e[cdb:], []byte{0x28, byte(id)})
	}
	k.add(n|op, n)
	return true
}

func (k *fakeKernel) add(word, n uint32) {
	ne.PutUint32(k.mem[cmdrOff+k.head:], word)
	k.head = (k.head + n) % k.size
	ne.PutUint32(k.mem[offHead:], k.head)
}

// take returns the ids of the commands that were answered since it was last
// called, and their statuses.
func (k *fakeKernel) take() (ids []uint16, statuses []byte) {
	for tail := ne.Uint32(k.mem[offTail:]); k.cleaned != tail; {
		e := k.mem[cmdrOff+k.cleaned:]
		word := ne.Uint32(e)
		if word&opMask == opCommand {
			ids, statuses = append(ids, ne.Uint16(e[4:])), append(statuses, e[8])
		}
		k.cleaned = (k.cleaned + word&^opMask) % k.size
	}
	return ids, statuses
}

func open(t testing.TB, k *fakeKernel) *Ring {
	t.Helper()
	r, err := New(k.mem)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func next(t testing.TB, r *Ring) *Command {
	t.Helper()
	var c Command
	ok, err := r.Next(&c)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return nil
	}
	return &c
}

func TestCommand(t *testing.T) {
	k := newKernel(1024)
	r := open(t, k)
	if c := next(t, r); c != nil {
		t.Fatalf("command %d in an empty ring", c.ID)
	}
	at := uint64(k.data())
	k.put(opCommand, 112, 7, [2]uint64{at + 1024, 512}, [2]uint64{at, 1024})
	c := next(t, r)
	if c == nil || c.ID != 7 || c.CDB[0] != 0x28 || c.CDB[1] != 7 {
		t.Fatalf("got %+v, want command 7", c)
	}
	if len(c.Data) != 2 || &c.Data[0][0] != &k.mem[at+1024] || len(c.Data[0]) != 512 || len(c.Data[1]) != 1024 {
		t.Errorf("data is not where the kernel put it")
	}
	if err := r.Complete(7, 2, []byte{0x70, 0, 5}); err != nil {
		t.Fatal(err)
	}
	answer := k.mem[cmdrOff:]
	if ids, st := k.take(); len(ids) != 1 || ids[0] != 7 || st[0] != 2 {
		t.Errorf("answered %v with %v, want 7 with 2", ids, st)
	}
	if want := []byte{0x70, 0, 5, 0}; !bytes.Equal(answer[16:20], want) {
		t.Errorf("sense %x, want %x", answer[16:20], want)
	}
}

func TestUnknownOperation(t *testing.T) {
	k := newKernel(1024)
	r := open(t, k)
	k.put(5, 16, 0)
	k.put(opCommand, 112, 1)
	if c := next(t, r); c == nil || c.ID != 1 {
		t.Fatalf("got %+v, want the command after the unknown entry", c)
	}
	if k.mem[cmdrOff+7] != unknownOp {
		t.Error("the unknown entry is not marked")
	}
	if err := r.Complete(1, 0, nil); err != nil {
		t.Fatal(err)
	}
	if ids, _ := k.take(); len(ids) != 1 || ids[0] != 1 {
		t.Errorf("answered %v, want 1", ids)
	}
}

// TestRandomOrder keeps many commands of all sizes under way and answers them
// in any order.
func TestRandomOrder(t *testing.T) {
	k := newKernel(4096)
	r := open(t, k)
	rnd := rand.New(rand.NewPCG(1, 2))
	inKernel, taken := make(map[uint16]bool), []uint16{}
	var id uint16
	for range 20_000 {
		switch rnd.IntN(3) {
		case 0:
			id++
			op, n := uint32(opCommand), uint32(112+8*rnd.IntN(20))
			if rnd.IntN(10) == 0 {
				op, n = 3, 24
			}
			if k.put(op, n, id) && op == opCommand {
				inKernel[id] = true
			}
		case 1:
			if c := next(t, r); c != nil {
				if !inKernel[c.ID] || c.CDB[1] != byte(c.ID) {
					t.Fatalf("command %d is not one of the kernel's", c.ID)
				}
				taken = append(taken, c.ID)
			}
		case 2:
			if len(taken) == 0 {
				continue
			}
			i := rnd.IntN(len(taken))
			if err := r.Complete(taken[i], byte(taken[i]), nil); err != nil {
				t.Fatal(err)
			}
			ids, st := k.take()
			if len(ids) != 1 || ids[0] != taken[i] || st[0] != byte(taken[i]) {
				t.Fatalf("answered %v with %v, want %d", ids, st, taken[i])
			}
			delete(inKernel, taken[i])
			taken[i] = taken[len(taken)-1]
			taken = taken[:len(taken)-1]
		}
	}
	if id < 1000 {
		t.Errorf("only %d commands went through", id)
	}
}

func TestTooManyAnswers(t *testing.T) {
	k := newKernel(1024)
	r := open(t, k)
	k.put(opCommand, 112, 1)
	if err := r.Complete(1, 0, nil); err == nil {
		t.Error("a command was answered that nobody took")
	}
}

func TestMalformed(t *testing.T) {
	at := uint64(cmdrOff + 1024)
	for name, c := range map[string]struct {
		spoil func(m []byte)
		field string
	}{
		"version":      {func(m []byte) { ne.PutUint16(m, 1) }, "version"},
		"flags":        {func(m []byte) { ne.PutUint16(m[2:], 2) }, "flags without out-of-order completion"},
		"ring at 0":    {func(m []byte) { ne.PutUint32(m[4:], 0) }, "cmdr_off"},
		"ring beyond":  {func(m []byte) { ne.PutUint32(m[4:], 1<<31) }, "cmdr_off"},
		"no ring":      {func(m []byte) { ne.PutUint32(m[8:], 0) }, "cmdr_size"},
		"large ring":   {func(m []byte) { ne.PutUint32(m[8:], 1<<20) }, "cmdr_size"},
		"tail":         {func(m []byte) { ne.PutUint32(m[64:], 1024) }, "cmd_tail"},
		"head":         {func(m []byte) { ne.PutUint32(m[12:], 1024) }, "cmd_head"},
		"odd head":     {func(m []byte) { ne.PutUint32(m[12:], 9) }, "cmd_head"},
		"empty entry":  {func(m []byte) { ne.PutUint32(m[cmdrOff:], 1) }, "entry length"},
		"short entry":  {func(m []byte) { ne.PutUint32(m[cmdrOff:], 104|1) }, "entry length"},
		"long entry":   {func(m []byte) { ne.PutUint32(m[cmdrOff:], 120|1) }, "entry length"},
		"many buffers": {func(m []byte) { ne.PutUint32(m[cmdrOff+8:], 5) }, "iov_cnt"},
		"descriptor":   {func(m []byte) { ne.PutUint64(m[cmdrOff+24:], at+dataSize) }, "cdb_off"},
		"buffer":       {func(m []byte) { ne.PutUint64(m[cmdrOff+48:], at+dataSize-511) }, "iov"},
		"buffer wraps": {func(m []byte) { ne.PutUint64(m[cmdrOff+56:], 1<<64-1) }, "iov"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(1024)
			k.put(opCommand, 112, 1, [2]uint64{at, 512})
			c.spoil(k.mem)
			r, err := New(k.mem)
			if err == nil {
				_, err = r.Next(new(Command))
			}
			var bad *Error
			if !errors.As(err, &bad) || bad.Field != c.field {
				t.Errorf("got %v, want an error in %s", err, c.field)
			}
		})
	}
}

// FuzzRing feeds any memory to the parser: it must neither panic nor loop, and
// never hand out memory outside the ring.
func FuzzRing(f *testing.F) {
	k := newKernel(1024)
	at := uint64(k.data())
	k.put(opCommand, 128, 1, [2]uint64{at, 512}, [2]uint64{at + 512, 512})
	k.put(3, 16, 0)
	k.put(opCommand, 112, 2)
	f.Add(k.mem)
	f.Add(newKernel(64).mem)
	f.Fuzz(func(t *testing.T, b []byte) {
		mem := aligned(len(b))
		copy(mem, b)
		r, err := New(mem)
		if err != nil {
			return
		}
		var taken []uint16
		for range len(mem) {
			var c Command
			ok, err := r.Next(&c)
			if err != nil || !ok {
				break
			}
			taken = append(taken, c.ID)
			for _, d := range c.Data {
				clear(d)
			}
		}
		for _, id := range taken {
			if err := r.Complete(id, 2, make([]byte, SenseSize)); err != nil {
				break
			}
		}
	})
}

// TestNoAllocations asks that a command costs none, from the ring and back.
func TestNoAllocations(t *testing.T) {
	k := newKernel(4096)
	r := open(t, k)
	c := Command{Data: make([][]byte, 0, 4)}
	at := uint64(k.data())
	n := testing.AllocsPerRun(1000, func() {
		k.put(opCommand, 112, 1, [2]uint64{at, 512})
		if ok, err := r.Next(&c); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if err := r.Complete(c.ID, 0, nil); err != nil {
			t.Fatal(err)
		}
		k.cleaned = ne.Uint32(k.mem[offTail:])
	})
	if n != 0 {
		t.Errorf("%v allocations per command", n)
	}
}
