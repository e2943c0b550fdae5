// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	debugelf "debug/elf"
	"encoding/binary"
	"maps"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// makeELF returns a library whose dynamic section has the entries given, tag
// and string, of at least size bytes.
func makeELF(size int, entries ...any) []byte {
	le := binary.LittleEndian
	const dynamic = 512
	names := dynamic + elfDynamic*(1+len(entries)/2)
	table := le.AppendUint64(le.AppendUint64(nil, dtStrtab), uint64(0x400000+names))
	text := "\x00"
	for i := 0; i < len(entries); i += 2 {
		tag, _ := entries[i].(int)
		value, _ := entries[i+1].(string)
		table = le.AppendUint64(le.AppendUint64(table, uint64(tag)), uint64(len(text)))
		text += value + "\x00"
	}
	code := (names + len(text) + 4095) &^ 4095
	b := make([]byte, max(size, code))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[18:], 62)
	le.PutUint64(b[32:], elfHeader)
	le.PutUint16(b[54:], elfProgram)
	le.PutUint16(b[56:], 3)
	for i, p := range [][4]int{{ptLoad, 4, 0, code}, {ptLoad, 6, code, len(b) - code}, {ptDynamic, 6, dynamic, len(table)}} {
		h := b[elfHeader+i*elfProgram:]
		le.PutUint32(h, uint32(p[0]))
		le.PutUint32(h[4:], uint32(p[1]))
		le.PutUint64(h[8:], uint64(p[2]))
		le.PutUint64(h[16:], uint64(0x400000+p[2]))
		le.PutUint64(h[32:], uint64(p[3]))
	}
	copy(b[dynamic:], table)
	copy(b[names:], text)
	return b
}

func TestLinksAreThoseOfDebugELF(t *testing.T) {
	for _, name := range []string{"ls", "bash", "openssl"} {
		path := need.Command(t, name)
		data := readFile(t, path)
		f, err := debugelf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		want, err := f.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		e, err := parseELF(data[:headBytes])
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		l, err := e.links(bytes.NewReader(data))
		if diff := cmp.Diff(want, l.needed); diff != "" || err != nil || !strings.Contains(l.interp, "/ld") {
			t.Errorf("%s: interpreter %q, %v, needed (-want +got):\n%s", path, l.interp, err, diff)
		}
	}
}

// everything returns what a file leads to, and does with it what a scout does.
func everything(data []byte) (l links) {
	e, err := parseELF(data[:min(len(data), headBytes)])
	if err != nil {
		return l
	}
	for _, s := range append(e.parts(1<<20), e.rest()...) {
		if s.off < 0 || s.n < 0 {
			panic(s)
		}
	}
	l, _ = e.links(bytes.NewReader(data))
	return l
}

func TestHostileELF(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(b []byte)
	}{
		{"program headers behind the head", func(b []byte) { binary.LittleEndian.PutUint64(b[32:], 1<<63) }},
		{"more program headers than there is room for", func(b []byte) { b[56], b[57] = 0xff, 0xff }},
		{"32 bits", func(b []byte) { b[4] = 1 }},
		{"big-endian", func(b []byte) { b[5] = 2 }},
		{"segment of giant length", func(b []byte) { binary.LittleEndian.PutUint64(b[elfHeader+32:], 1<<63) }},
		{"dynamic section elsewhere", func(b []byte) { binary.LittleEndian.PutUint64(b[elfHeader+2*elfProgram+8:], 1<<47) }},
		{"names elsewhere", func(b []byte) { binary.LittleEndian.PutUint64(b[512+8:], 1<<62) }},
	} {
		b := makeELF(0, dtNeeded, "liba.so")
		tc.damage(b)
		if l := everything(b); len(l.needed) > 0 {
			t.Errorf("%s: %+v", tc.name, l)
		}
	}
	many := make([]any, 0, 4000)
	for range 1000 {
		many = append(many, dtNeeded, "a")
	}
	if l := everything(makeELF(0, many...)); len(l.needed) > maxNeeded {
		t.Errorf("%d libraries needed", len(l.needed))
	}
}

func FuzzParseELF(f *testing.F) {
	f.Add(makeELF(0, dtNeeded, "liba.so", dtRunpath, "$ORIGIN/../lib:/opt/lib", dtRpath, "/x"))
	f.Add([]byte("\x7fELF\x02\x01"))
	f.Add(makeELF(0, dtSymtab, "symbols", dtInit, "code", dtInitArray, "12345678", dtInitSize, "8", dtRela, "relocations"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := everything(data)
		if len(l.needed) > maxNeeded {
			t.Errorf("%d libraries needed", len(l.needed))
		}
		e, err := parseELF(data[:min(len(data), headBytes)])
		if err != nil {
			return
		}
		r, symbols := bytes.NewReader(data), 0
		e.symbols(r, l.dynamic, int64(len(data)), func(s symbol) {
			if symbols++; len(s.name) > maxImport {
				t.Errorf("a name of %d bytes", len(s.name))
			}
		})
		if ends := len(e.ends(r, l.dynamic)); ends > maxInits+2 || symbols > maxSymbols {
			t.Errorf("%d functions, %d symbols", ends, symbols)
		}
	})
}

// TestSymbolsAreThoseOfDebugELF: what programs import, and which of a library's
// functions tell which one of several is meant.
func TestSymbolsAreThoseOfDebugELF(t *testing.T) {
	for _, path := range []string{need.Command(t, "openssl"), libc(t)} {
		data := readFile(t, path)
		f, err := debugelf.NewFile(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		all, err := f.DynamicSymbols()
		if err != nil {
			t.Fatal(err)
		}
		want, got := make(map[string]uint64), make(map[string]uint64)
		for _, s := range all {
			if s.Section == debugelf.SHN_UNDEF || debugelf.ST_TYPE(s.Info) == sttIFunc {
				want[s.Name] = s.Value
			}
		}
		e, err := parseELF(data[:headBytes])
		if err != nil {
			t.Fatal(err)
		}
		l, err := e.links(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		e.symbols(bytes.NewReader(data), l.dynamic, int64(len(data)), func(s symbol) { got[string(s.name)] = s.addr })
		if len(want) == 0 || !maps.Equal(got, want) {
			t.Errorf("%s: %d symbols, want %d", path, len(got), len(want))
		}
	}
}

// libc returns the path of the C library, as ldd knows it.
func libc(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), need.Command(t, "ldd"), need.Command(t, "openssl")).Output()
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(/\S+/libc\.so\S*) \(0x`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("ldd said %s", out)
	}
	return string(m[1])
}
