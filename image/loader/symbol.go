// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"io"
	"slices"
)

// Of a library of which not all is fetched, some code is sure to run: what
// initialises it, what ends it, when a program is over that only prepares the one
// that counts, and the functions that tell which of several versions of another
// one is meant, if anyone imports that.

// A symbol in an ELF file. The offsets are durable (System V ABI, chapter 4).
//
//	0 u32 name   4 u8 type in the low half   6 u16 section, 0 if it is another
//	file's   8 u64 address
const (
	elfSymbol = 24
	sttIFunc  = 10 // of GNU
)

// Bounds of what is read of symbols.
const (
	maxSymbols = 32 << 10 // in one file
	maxImports = 64 << 10 // names, in all files
	maxImport  = 256      // bytes of a name
	maxInits   = 1 << 10  // functions that initialise one file
	maxRela    = 8 << 20  // bytes of relocations

	maxNameBytes = 4 << 20 // bytes of all names in one file
)

// A symbol is a name of another file's in an ELF file, or that of a function
// that returns which one it stands for, and where that is in memory.
type symbol struct {
	name    []byte
	foreign bool
	addr    uint64
}

// symbols calls each for such symbols of r, which is the file, as far as they
// lie in its first limit bytes. The dynamic section is given.
func (e *elf) symbols(r io.ReaderAt, dynamic []byte, limit int64, each func(symbol)) {
	at, ok := e.fileOff(tagValue(dynamic, dtSymtab))
	names, ok2 := e.fileOff(tagValue(dynamic, dtStrtab))
	// Nothing in memory tells how many there are. Linkers place their names
	// behind them.
	n := min(names, limit) - at
	size := min(int64(min(tagValue(dynamic, dtStrSize), maxNameBytes)), limit-names)
	if !ok || !ok2 || n < elfSymbol || size <= 0 {
		return
	}
	table, text := make([]byte, min(n/elfSymbol, maxSymbols)*elfSymbol), make([]byte, size)
	if _, err := r.ReadAt(table, at); err != nil {
		return
	}
	if _, err := r.ReadAt(text, names); err != nil {
		return
	}
	for le := binary.LittleEndian; len(table) > 0; table = table[elfSymbol:] {
		name, kind := uint64(le.Uint32(table)), table[4]&0xf
		sym := symbol{foreign: le.Uint16(table[6:]) == 0, addr: le.Uint64(table[8:])}
		if name >= uint64(len(text)) || !sym.foreign && kind != sttIFunc {
			continue
		}
		sym.name = text[name:min(name+maxImport, uint64(len(text)))]
		if end := bytes.IndexByte(sym.name, 0); end > 0 {
			sym.name = sym.name[:end]
			each(sym)
		}
	}
}

// ends returns where the functions are that initialise the file and end it.
func (e *elf) ends(r io.ReaderAt, dynamic []byte) (addrs []uint64) {
	addrs = []uint64{tagValue(dynamic, dtInit), tagValue(dynamic, dtFini)}
	at, ok := e.fileOff(tagValue(dynamic, dtInitArray))
	if !ok {
		return addrs
	}
	list := make([]byte, 8*min(tagValue(dynamic, dtInitSize)/8, maxInits))
	if _, err := r.ReadAt(list, at); err != nil {
		return addrs
	}
	for ; len(list) > 0; list = list[8:] {
		addrs = append(addrs, binary.LittleEndian.Uint64(list))
	}
	return addrs
}

// bind takes note of what f imports and, where it does not have all of f
// fetched, asks for the code that will run, and for all of the relocations.
func (s *scout) bind(f *file, e *elf, dynamic []byte) {
	limit := max(f.size, e.size())
	if first := e.parts(s.opts.Part)[1:]; !f.whole && len(first) > 0 {
		limit = first[0].off + first[0].n
	}
	var addrs []uint64
	e.symbols(f, dynamic, limit, func(sym symbol) {
		switch _, known := s.imports[string(sym.name)]; {
		case sym.foreign && !known && len(s.imports) < maxImports:
			s.imports[string(sym.name)] = struct{}{}
		case !sym.foreign && known:
			addrs = append(addrs, sym.addr)
		}
	})
	if f.whole {
		return
	}
	var code []segment
	for _, a := range append(addrs, e.ends(f, dynamic)...) {
		if off, ok := e.fileOff(a); ok && off > 0 {
			code = append(code, segment{off: off}.around())
		}
	}
	if off, ok := e.fileOff(tagValue(dynamic, dtRela)); ok {
		code = append(code, segment{off: off, n: int64(min(tagValue(dynamic, dtRelaSize), maxRela))})
	}
	for _, c := range joined(code) {
		s.wantBesides(f, c.off, c.n)
	}
}

// joined returns the segments in order, those that lie closely together as one.
func joined(all []segment) []segment {
	slices.SortFunc(all, func(a, b segment) int { return cmp.Compare(a.off, b.off) })
	some := all[:0]
	for _, c := range all {
		if i := len(some) - 1; i >= 0 && c.off-some[i].off-some[i].n <= mergeGap {
			some[i].n = max(some[i].n, c.off+c.n-some[i].off)
			continue
		}
		some = append(some, c)
	}
	return some
}
