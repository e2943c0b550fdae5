// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
)

// An ELF file of 64 bits, little-endian, as far as the dynamic linker's path
// to other files leads. The offsets are durable (System V ABI, chapters 4, 5).
//
//	header   18 u16 machine   32 u64 program headers   54 u16 size of one
//	         56 u16 number of them
//	program  0 u32 type   4 u32 flags   8 u64 offset   16 u64 address
//	         32 u64 bytes in the file
//	dynamic  0 u64 tag   8 u64 value
const (
	elfHeader  = 64
	elfProgram = 56
	elfDynamic = 16

	ptLoad    = 1
	ptDynamic = 2
	ptInterp  = 3

	pfExec  = 1
	pfWrite = 2

	dtNeeded    = 1
	dtStrtab    = 5
	dtSymtab    = 6
	dtRela      = 7
	dtRelaSize  = 8
	dtStrSize   = 10
	dtInit      = 12
	dtFini      = 13
	dtRpath     = 15
	dtInitArray = 25
	dtInitSize  = 27
	dtRunpath   = 29
)

// Bounds of what is read of an ELF file.
const (
	headBytes  = 4 << 10  // the header, and behind it the program headers
	maxDynamic = 64 << 10 // bytes of the dynamic section
	maxNeeded  = 256
	maxPath    = 4 << 10
)

var errFormat = errors.New("not what its beginning says")

// A segment is a part of an ELF file.
type segment struct {
	off, n int64 // bytes in the file
	addr   uint64
	flags  uint32
}

// An elf is the head of an ELF file, checked: its segments begin and end at
// numbers that can be added.
type elf struct {
	machine         uint16
	loads           []segment
	dynamic, interp segment
}

// parseELF parses the first bytes of an ELF file.
func parseELF(head []byte) (*elf, error) {
	le := binary.LittleEndian
	if len(head) < elfHeader || !isELF(head) || head[4] != 2 || head[5] != 1 {
		return nil, errFormat
	}
	e := &elf{machine: le.Uint16(head[18:])}
	at, n := le.Uint64(head[32:]), uint64(le.Uint16(head[56:]))
	if le.Uint16(head[54:]) != elfProgram || at > uint64(len(head)) || n*elfProgram > uint64(len(head))-at {
		return nil, errFormat
	}
	for p := head[at:][:n*elfProgram]; len(p) > 0; p = p[elfProgram:] {
		off, size := le.Uint64(p[8:]), le.Uint64(p[32:])
		if off >= 1<<48 || size >= 1<<48 {
			return nil, errFormat
		}
		e.add(le.Uint32(p), segment{int64(off), int64(size), le.Uint64(p[16:]), le.Uint32(p[4:])})
	}
	return e, nil
}

func (e *elf) add(kind uint32, s segment) {
	switch kind {
	case ptLoad:
		e.loads = append(e.loads, s)
	case ptDynamic:
		e.dynamic = s
	case ptInterp:
		e.interp = s
	}
}

// size returns the length of what of the file is loaded.
func (e *elf) size() (n int64) {
	for _, s := range e.loads {
		n = max(n, s.off+s.n)
	}
	return n
}

// dataShare is how much more is fetched of a part without code than of one with
// code behind what is sure to be read: the dynamic linker goes through all of it.
const dataShare = 4

// parts returns what the dynamic linker reads of the file, of each part at most
// limit bytes, or dataShare times that: the dynamic section, the tables that it
// points to, which lie at the beginning, with or without the code behind them,
// and what it writes to.
func (e *elf) parts(limit int64) []segment {
	dynamic := e.dynamic
	dynamic.n = min(dynamic.n, maxDynamic, limit)
	all := []segment{dynamic}
	for i, s := range e.loads {
		switch {
		case i == 0 && s.flags&pfExec != 0:
			s.n = min(s.n/4, limit)
			all = append(all, s)
		case i == 0, s.flags&pfWrite != 0:
			s.n = min(s.n, dataShare*limit)
			all = append(all, s)
		}
	}
	return all
}

// rest returns what is loaded of the file besides its parts: code, mostly.
func (e *elf) rest() (all []segment) {
	for i, s := range e.loads {
		if i > 0 && s.flags&pfWrite == 0 {
			all = append(all, s)
		} else if i == 0 && s.flags&pfExec != 0 {
			s.off, s.n = s.off+s.n/4, s.n-s.n/4
			all = append(all, s)
		}
	}
	return all
}

// faultAround is how much of a file, in bytes, a page fault reads before and
// behind the page, if the kernel reads 128 KiB ahead: see blockmount. It waits
// for all of it.
const faultAround = 64 << 10

// around returns s with what is read with it.
func (s segment) around() segment {
	off := max(s.off-faultAround, 0)
	s.n += s.off - off + faultAround
	s.off = off
	return s
}

// fileOff returns where in the file the byte at addr is.
func (e *elf) fileOff(addr uint64) (int64, bool) {
	for _, s := range e.loads {
		if addr >= s.addr && addr-s.addr < uint64(s.n) {
			return s.off + int64(addr-s.addr), true
		}
	}
	return 0, false
}

// links are the names of other files in an ELF file.
type links struct {
	interp         string
	needed         []string
	rpath, runpath []string
	dynamic        []byte // the section
}

// links reads the names of other files from r, which is the file.
func (e *elf) links(r io.ReaderAt) (l links, err error) {
	if e.interp.n > 0 {
		l.interp = cString(r, e.interp.off)
	}
	raw := make([]byte, min(e.dynamic.n, maxDynamic)&^(elfDynamic-1))
	if _, err := r.ReadAt(raw, e.dynamic.off); err != nil && !errors.Is(err, io.EOF) {
		return l, err
	}
	l.dynamic = raw
	names, ok := e.fileOff(tagValue(raw, dtStrtab))
	if !ok {
		return l, nil // a static program
	}
	for ; len(raw) > 0; raw = raw[elfDynamic:] {
		value := binary.LittleEndian.Uint64(raw[8:])
		if value >= 1<<32 {
			continue
		}
		switch binary.LittleEndian.Uint64(raw) {
		case dtNeeded:
			if len(l.needed) < maxNeeded {
				l.needed = append(l.needed, cString(r, names+int64(value)))
			}
		case dtRpath:
			l.rpath = strings.Split(cString(r, names+int64(value)), ":")
		case dtRunpath:
			l.runpath = strings.Split(cString(r, names+int64(value)), ":")
		}
	}
	return l, nil
}

// tagValue returns the value of the first entry with a tag, or 0.
func tagValue(raw []byte, tag uint64) uint64 {
	for ; len(raw) > 0; raw = raw[elfDynamic:] {
		if binary.LittleEndian.Uint64(raw) == tag {
			return binary.LittleEndian.Uint64(raw[8:])
		}
	}
	return 0
}

// cString returns the string at byte off of r, "" if it is none.
func cString(r io.ReaderAt, off int64) string {
	for _, size := range []int{128, maxPath} { // most are short
		b := make([]byte, size)
		n, err := r.ReadAt(b, off)
		if i := bytes.IndexByte(b[:n], 0); i >= 0 {
			return string(b[:i])
		}
		if err != nil {
			break
		}
	}
	return ""
}

func isELF(p []byte) bool { return len(p) >= 4 && string(p[:4]) == "\x7fELF" }
