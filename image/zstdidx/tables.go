// SPDX-License-Identifier: Apache-2.0

package zstdidx

// The tables that blocks hand on to the next.
const (
	tableHuffman = iota
	tableLengths // of literals
	tableOffsets
	tableMatches // lengths of matches
	tableCount
)

// How a table came to be. The values are durable: they stand in index files.
const (
	kindNone       = 0 // there is none yet
	kindPredefined = 1
	kindSingle     = 2 // one symbol, the byte of the description
	kindDescribed  = 3 // by a description as it stands in a block
)

// A recipe is what a table is made of.
type recipe struct {
	kind uint8
	n    uint8 // bytes of text
	text [255]byte
}

func (r *recipe) set(kind uint8, text []byte) {
	r.kind = kind
	r.n = uint8(copy(r.text[:], text))
}

// tables are those in force.
type tables struct {
	huffman huffman
	steps   [tableCount][maxStates]step // but that of tableHuffman
	logs    [tableCount]uint8
	recipes [tableCount]recipe

	// The last block repeated these tables, and made those.
	repeated, made [tableCount]bool
}

// reset is what a frame begins with.
func (t *tables) reset() {
	for k := range t.recipes {
		t.recipes[k].kind = kindNone
	}
}

// begin begins a block.
func (t *tables) begin() {
	t.repeated, t.made = [tableCount]bool{}, [tableCount]bool{}
}

// repeat uses table k of an earlier block.
func (t *tables) repeat(k int) error {
	if t.recipes[k].kind == kindNone {
		return malformed("repeated table that no block before has")
	}
	t.repeated[k] = true
	return nil
}

// An alphabet is what the symbols of one kind of table mean.
type alphabet struct {
	bases      []uint32
	extra      []uint8
	maxLog     int
	predefined []int16
	log        int // of predefined
}

// RFC 8878, sections 3.1.1.3.2.1.1 and 3.1.1.3.2.2.
var alphabets = [tableCount]alphabet{
	tableLengths: {
		bases: []uint32{
			0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64,
			128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536,
		},
		extra: []uint8{
			0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6,
			7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
		},
		maxLog: 9,
		predefined: []int16{
			4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3,
			2, 1, 1, 1, 1, 1, -1, -1, -1, -1,
		},
		log: 6,
	},
	tableOffsets: {
		bases: []uint32{
			1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10,
			1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20,
			1 << 21, 1 << 22, 1 << 23, 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28,
		},
		extra: []uint8{
			0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
			21, 22, 23, 24, 25, 26, 27, 28,
		},
		maxLog:     8,
		predefined: []int16{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1},
		log:        5,
	},
	tableMatches: {
		bases: []uint32{
			3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
			29, 30, 31, 32, 33, 34, 35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, 131, 259, 515, 1027, 2051,
			4099, 8195, 16387, 32771, 65539,
		},
		extra: []uint8{
			0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
			0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11,
			12, 13, 14, 15, 16,
		},
		maxLog: 9,
		predefined: []int16{
			1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
			1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1,
			-1, -1, -1, -1, -1,
		},
		log: 6,
	},
}

// make makes the FSE table k as a block says by its mode, from the text at the
// start of b. It returns how many bytes of b that takes.
func (t *tables) make(k int, mode byte, b []byte) (n int, err error) {
	a := &alphabets[k]
	switch mode {
	case 0:
		t.lay(k, a.predefined, a.log)
		t.recipes[k].set(kindPredefined, nil)
	case 1:
		if len(b) < 1 || int(b[0]) >= len(a.bases) {
			return 0, malformed("table of one unknown symbol")
		}
		n = 1
		t.steps[k][0] = step{base: a.bases[b[0]], extra: a.extra[b[0]]}
		t.logs[k] = 0
		t.recipes[k].set(kindSingle, b[:1])
	case 2:
		var counts [64]int16
		symbols, log, size, err := readCounts(b, counts[:len(a.bases)], a.maxLog)
		if err != nil {
			return 0, err
		}
		n = size
		t.lay(k, counts[:symbols], log)
		t.recipes[k].set(kindDescribed, b[:n])
	default:
		return 0, t.repeat(k)
	}
	t.made[k] = true
	return n, nil
}

// lay builds table k of the counts.
func (t *tables) lay(k int, counts []int16, log int) {
	s := t.steps[k][:1<<log]
	build(s, counts, log)
	a := &alphabets[k]
	for i := range s {
		symbol := s[i].base
		s[i].base, s[i].extra = a.bases[symbol], a.extra[symbol]
	}
	t.logs[k] = uint8(log)
}

// makeHuffman makes the Huffman table described at in[at:end] and returns the
// length of the description.
func (t *tables) makeHuffman(in []byte, at, end int) (n int, err error) {
	if n, err = t.huffman.read(in, at, end); err != nil {
		return 0, err
	}
	t.recipes[tableHuffman].set(kindDescribed, in[at:at+n])
	t.made[tableHuffman] = true
	return n, nil
}
