// SPDX-License-Identifier: Apache-2.0

package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/scsi"
)

const diskSize = 1 << 20

// cdb makes a descriptor block of hex digits.
func cdb(t testing.TB, digits string) *[16]byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
	if err != nil || len(b) > 16 {
		t.Fatalf("descriptor block %q: %v", digits, err)
	}
	var c [16]byte
	copy(c[:], b)
	return &c
}

// do serves one command with the data in buffers of the given sizes.
func do(t testing.TB, u *scsi.Unit, digits string, data ...[]byte) error {
	t.Helper()
	return u.Do(t.Context(), cdb(t, digits), data)
}

func page(t testing.TB, u *scsi.Unit, digits string) []byte {
	t.Helper()
	p := make([]byte, 255)
	if err := do(t, u, digits, p[:100], p[100:]); err != nil {
		t.Fatalf("%s: %v", digits, err)
	}
	return p
}

func newDisk(t testing.TB) (*backendtest.MemVolume, *scsi.Unit) {
	t.Helper()
	v := backendtest.NewMemVolume(diskSize)
	p := make([]byte, diskSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(p)
	if _, err := v.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return v, scsi.NewUnit(v, "disk")
}

func content(t testing.TB, v backend.Volume, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := v.ReadAt(t.Context(), p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestReport compares what the disk says of itself with what is right, byte
// for byte.
func TestReport(t *testing.T) {
	v, rw := newDisk(t)
	ro := scsi.NewUnit(backendtest.ReadOnly(v), "disk")
	large := scsi.NewUnit(backendtest.NewMemVolume(4<<40), "large")
	for _, c := range []struct {
		name, cdb string
		unit      *scsi.Unit
		want      string // hex, of the first bytes
	}{
		{"standard inquiry", "12 00 00 00 ff", rw, "0000050 21f000002" + hex.EncodeToString([]byte("LIO-ORG TCMU device     0002"))},
		{"inquiry cut short", "12 00 00 00 03", rw, "000005 00 00 00"},
		{"page 00", "12 01 00 00 ff", rw, "00000006 0080 83b0b1b2"},
		{"page 80", "12 01 80 00 ff", rw, "00800020"},
		{"page 83", "12 01 83 00 ff", rw, "00830040 02010028" + hex.EncodeToString([]byte("LIO-ORG "))},
		{"page b0", "12 01 b0 00 ff", rw, "00b0003c 01000000 00000800 00000800 00000000 00200000 00000100 00000001 00000000 00000000 00200000"},
		{"page b0, read-only", "12 01 b0 00 ff", ro, "00b0003c 01000000 00000800 00000800 00000000 00000000 00000000 00000000 00000000 00000000 00200000"},
		{"page b1", "12 01 b1 00 ff", rw, "00b1003c 0001"},
		{"page b2", "12 01 b2 00 ff", rw, "00b20004 00e40200"},
		{"page b2, read-only", "12 01 b2 00 ff", ro, "00b20004 00000000"},
		{"capacity 10", "25", rw, "000007ff 00000200"},
		{"capacity 10, large", "25", large, "ffffffff 00000200"},
		{"capacity 16", "9e 10 0000000000000000 00000020", rw, "00000000000007ff 00000200 0000 c000 00000000"},
		{"capacity 16, read-only", "9e 10 0000000000000000 00000020", ro, "00000000000007ff 00000200 0000 0000"},
		{"capacity 16, large", "9e 10 0000000000000000 00000020", large, "00000001ffffffff 00000200"},
		{"capacity 16, cut short", "9e 10 0000000000000000 00000008", rw, "00000000000007ff 00000000"},
		{"caching", "1a 00 08 00 ff", rw, "17 00 00 00 08 12 04 00"},
		{"caching, read-only", "1a 00 08 00 ff", ro, "17 00 80 00 08 12 00 00"},
		{"caching, changeable", "1a 00 48 00 ff", rw, "17 00 00 00 08 12 00 00"},
		{"all pages", "1a 00 3f 00 ff", rw, "23 00 00 00 08 12 04"},
		{"all pages, 10 bytes", "5a 00 3f 00 000000 00ff", ro, "0026 00 80 0000 0000 08 12 00"},
		{"control, 10 bytes", "5a 00 0a 00 000000 00ff", rw, "0012 00 00 0000 0000 0a 0a 00 10 00000000 ffff"},
		{"LUNs", "a0 00 00 000000 00000010", rw, "00000008 00000000 00000000 00000000"},
		{"well-known LUNs", "a0 00 01 000000 00000010", rw, "00000000 00000000"},
		{"no sense", "03 00 00 00 ff", rw, "70 00 00 00 00 00 00 0a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := hex.EncodeToString(page(t, c.unit, c.cdb))
			if want := strings.ReplaceAll(c.want, " ", ""); !strings.HasPrefix(got, want) {
				t.Errorf("got %s, want %s…", got[:min(len(got), len(want)+16)], want)
			}
		})
	}
	name := func(u *scsi.Unit) string { return hex.EncodeToString(page(t, u, "12 01 83 00 ff")[48+4:][:16]) }
	if got := name(rw); !strings.HasPrefix(got, "6001405") {
		t.Errorf("NAA name %s", got)
	}
	if name(rw) != name(ro) || name(rw) == name(large) {
		t.Error("the name does not follow from the disk's")
	}
}

// TestRefusals names the sense data of everything a disk does not do.
func TestRefusals(t *testing.T) {
	const (
		opcode, rng, field   = 0x2000, 0x2100, 0x2400
		parameter, length    = 0x2600, 0x1a00
		saved, writeProtect  = 0x3900, 0x2700
		illegal, dataProtect = 5, 7
	)
	v, rw := newDisk(t)
	ro := scsi.NewUnit(backendtest.ReadOnly(v), "disk")
	sector := func() []byte { return make([]byte, 512) }
	unmap := func(digits string) []byte { return append(cdb(t, digits)[:8:8], make([]byte, 504)...) }
	for _, c := range []struct {
		name, cdb string
		unit      *scsi.Unit
		data      []byte
		want      scsi.Sense
	}{
		{"unknown", "ff", rw, nil, scsi.Sense{illegal, opcode}},
		{"service action", "9e 12", rw, nil, scsi.Sense{illegal, opcode}},
		{"page c0", "12 01 c0 00 ff", rw, sector(), scsi.Sense{illegal, field}},
		{"page without EVPD", "12 00 80 00 ff", rw, sector(), scsi.Sense{illegal, field}},
		{"mode page", "1a 00 1c 00 ff", rw, sector(), scsi.Sense{illegal, field}},
		{"mode subpage", "1a 00 08 01 ff", rw, sector(), scsi.Sense{illegal, field}},
		{"saved mode page", "1a 00 c8 00 ff", rw, sector(), scsi.Sense{illegal, saved}},
		{"LUN report", "a0 00 11 000000 00000010", rw, sector(), scsi.Sense{illegal, field}},
		{"read past the end", "28 00 00000800 00 0001", rw, sector(), scsi.Sense{illegal, rng}},
		{"read across the end", "28 00 000007ff 00 0002", rw, make([]byte, 1024), scsi.Sense{illegal, rng}},
		{"read 16, overflow", "88 00 ffffffffffffffff 00000002", rw, sector(), scsi.Sense{illegal, rng}},
		{"read, protected", "28 20 00000000 00 0001", rw, sector(), scsi.Sense{illegal, field}},
		{"read without room", "28 00 00000000 00 0002", rw, sector(), scsi.Sense{illegal, field}},
		{"read of odd buffers", "28 00 00000000 00 0001", rw, make([]byte, 100), scsi.Sense{illegal, field}},
		{"write past the end", "2a 00 00000800 00 0001", rw, sector(), scsi.Sense{illegal, rng}},
		{"write, read-only", "2a 00 00000000 00 0001", ro, sector(), scsi.Sense{dataProtect, writeProtect}},
		{"write same, read-only", "93 00 0000000000000000 00000001", ro, sector(), scsi.Sense{dataProtect, writeProtect}},
		{"unmap, read-only", "42 00 00000000 00 0018", ro, sector(), scsi.Sense{dataProtect, writeProtect}},
		{"write same of nothing", "93 00 0000000000000000 00000000", rw, sector(), scsi.Sense{illegal, field}},
		{"write same past the end", "41 00 00000800 00 0001", rw, sector(), scsi.Sense{illegal, rng}},
		{"write same, anchor", "93 18 0000000000000000 00000001", rw, sector(), scsi.Sense{illegal, field}},
		{"write same without data", "41 00 00000000 00 0001", rw, nil, scsi.Sense{illegal, length}},
		{"unmap, anchor", "42 01 00000000 00 0018", rw, sector(), scsi.Sense{illegal, field}},
		{"unmap, short", "42 00 00000000 00 0004", rw, sector(), scsi.Sense{illegal, length}},
		{"unmap without list", "42 00 00000000 00 0018", rw, nil, scsi.Sense{illegal, length}},
		{"unmap, long list", "42 00 00000000 00 0018", rw, unmap("0000 0020 00000000"), scsi.Sense{illegal, parameter}},
		{"sync past the end", "35 00 00000801 00 0000", rw, nil, scsi.Sense{illegal, rng}},
		{"mode select, saved", "15 11 0000 18", rw, sector(), scsi.Sense{illegal, field}},
		{"mode select, vendor format", "15 00 0000 18", rw, sector(), scsi.Sense{illegal, field}},
		{"mode select, short", "15 10 0000 02", rw, sector(), scsi.Sense{illegal, length}},
		{"mode select, unknown page", "15 10 0000 18", rw, sector(), scsi.Sense{illegal, parameter}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := do(t, c.unit, c.cdb, c.data)
			if err == nil || scsi.SenseOf(err) != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if fresh, _ := newDisk(t); !bytes.Equal(content(t, v, 0, diskSize), content(t, fresh, 0, diskSize)) {
		t.Error("a refused command changed the disk")
	}
}

func TestModeSelectOfWhatIs(t *testing.T) {
	_, rw := newDisk(t)
	for _, c := range []struct{ sense, sel string }{
		{"1a 00 3f 00 ff", "15 10 0000 24"},
		{"5a 00 3f 00 000000 00ff", "55 10 00000000 00 0028"},
	} {
		p := page(t, rw, c.sense)
		if err := do(t, rw, c.sel, p); err != nil {
			t.Errorf("%s: %v", c.sel, err)
		}
		p[bytes.Index(p, []byte{0x08, 0x12, 0x04})+2] = 0 // the write cache off
		if err := do(t, rw, c.sel, p); err == nil {
			t.Errorf("%s turned the write cache off", c.sel)
		}
	}
}

// TestForms reads and writes by descriptor blocks of every length.
func TestForms(t *testing.T) {
	v, u := newDisk(t)
	for _, c := range []struct {
		name, read, write string
		off               int64
		n                 int
	}{
		{"6 bytes", "08 000123 02", "0a 000123 02", 0x123 * 512, 1024},
		{"6 bytes, 256 blocks", "08 000001 00", "0a 000001 00", 512, 256 * 512},
		{"10 bytes", "28 00 00000456 00 0003", "2a 00 00000456 00 0003", 0x456 * 512, 3 * 512},
		{"12 bytes", "a8 00 000007ff 00000001", "aa 00 000007ff 00000001", 0x7ff * 512, 512},
		{"16 bytes", "88 00 0000000000000010 00000400", "8a 00 0000000000000010 00000400", 0x10 * 512, 0x400 * 512},
		{"nothing", "28 00 00000800 00 0000", "2a 00 00000800 00 0000", diskSize, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := make([]byte, c.n)
			if err := do(t, u, c.read, got[:c.n/1024*512], got[c.n/1024*512:]); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, content(t, v, c.off, c.n)) {
				t.Error("read something else")
			}
			want := bytes.Repeat([]byte{0x5a}, c.n)
			if err := do(t, u, c.write, want, []byte("more than is asked for")); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(content(t, v, c.off, c.n), want) {
				t.Error("wrote something else")
			}
		})
	}
}

func TestSync(t *testing.T) {
	v, u := newDisk(t)
	for i, digits := range []string{
		"35", "91", "35 00 00000001 00 0010",
		"2a 08 00000000 00 0001", // a write with FUA
	} {
		if err := do(t, u, digits, make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
		if v.Syncs() != i+1 {
			t.Errorf("%s did not sync the volume", digits)
		}
	}
	if err := do(t, scsi.NewUnit(backendtest.ReadOnly(v), ""), "35"); err != nil {
		t.Errorf("sync of a read-only disk: %v", err)
	}
}

func TestProvisioning(t *testing.T) {
	block := bytes.Repeat([]byte{0xab, 0}, 256)
	for _, c := range []struct {
		name, cdb string
		data      []byte
		want      []byte // of blocks 8 to 24
	}{
		{"write same 10", "41 00 00000008 00 0010", block, bytes.Repeat(block, 16)},
		{"write same 16", "93 00 0000000000000008 00000010", block, bytes.Repeat(block, 16)},
		{"write same 16, may unmap", "93 08 0000000000000008 00000010", block, bytes.Repeat(block, 16)},
		{"zeroes", "93 00 0000000000000008 00000010", make([]byte, 512), make([]byte, 16*512)},
		{"unmap by write same 10", "41 08 00000008 00 0010", make([]byte, 512), make([]byte, 16*512)},
		{"no data", "93 09 0000000000000008 00000010", nil, make([]byte, 16*512)},
		{
			"unmap", "42 00 00000000 00 0028",
			unmapList([2]uint64{8, 4}, [2]uint64{12, 12}), make([]byte, 16*512),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, u := newDisk(t)
			want := content(t, v, 0, diskSize)
			copy(want[8*512:], c.want)
			if err := do(t, u, c.cdb, c.data); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(content(t, v, 0, diskSize), want) {
				t.Error("the disk holds something else")
			}
		})
	}
}

func unmapList(ranges ...[2]uint64) []byte {
	be := binary.BigEndian
	p := be.AppendUint16(nil, uint16(6+16*len(ranges)))
	p = append(be.AppendUint16(p, uint16(16*len(ranges))), 0, 0, 0, 0)
	for _, r := range ranges {
		p = append(be.AppendUint32(be.AppendUint64(p, r[0]), uint32(r[1])), 0, 0, 0, 0)
	}
	return p
}

// TestUnmapIsWhole asks that a list with one bad range discards nothing.
func TestUnmapIsWhole(t *testing.T) {
	v, u := newDisk(t)
	want := content(t, v, 0, diskSize)
	err := do(t, u, "42 00 00000000 00 0028", unmapList([2]uint64{0, 8}, [2]uint64{0x7ff, 2}))
	if err == nil || !bytes.Equal(content(t, v, 0, diskSize), want) {
		t.Errorf("a list with a range past the end: %v, and the disk changed or not", err)
	}
}

// TestWriteSameLong takes more than one write of the volume.
func TestWriteSameLong(t *testing.T) {
	v, u := newDisk(t)
	block := bytes.Repeat([]byte{1, 2}, 256)
	if err := do(t, u, "93 00 0000000000000001 000007ff", block); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, v, 512, diskSize-512), bytes.Repeat(block, 0x7ff)) {
		t.Error("the disk holds something else")
	}
}

// TestVolumeError is EIO, whatever went wrong.
func TestVolumeError(t *testing.T) {
	v, _ := newDisk(t)
	f := backendtest.NewFaultVolume(v)
	u := scsi.NewUnit(f, "disk")
	f.Set(func(context.Context, backendtest.Op, int64, int64) error { return errors.New("disk on fire") })
	for _, digits := range []string{
		"28 00 00000000 00 0001", "2a 00 00000000 00 0001", "35",
		"93 09 0000000000000008 00000010",
	} {
		err := do(t, u, digits, make([]byte, 512))
		if got, want := scsi.SenseOf(err), (scsi.Sense{Key: 2, Code: 0x0800}); err == nil || got != want {
			t.Errorf("%s: got %v, want %v", digits, got, want)
		}
	}
}

// vectorVolume notes how a read reached it.
type vectorVolume struct {
	backend.Volume
	buffers []int
}

func (v *vectorVolume) ReadvAt(ctx context.Context, iov [][]byte, off int64) (int, error) {
	v.buffers = append(v.buffers, len(iov))
	n := 0
	for _, p := range iov {
		m, err := v.ReadAt(ctx, p, off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func TestVectorRead(t *testing.T) {
	mem, _ := newDisk(t)
	v := &vectorVolume{Volume: mem}
	u := scsi.NewUnit(v, "disk")
	p := make([]byte, 2048)
	for _, bufs := range [][][]byte{{p[:512], p[512:]}, {p}} {
		clear(p)
		if err := do(t, u, "28 00 00000010 00 0004", bufs...); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, content(t, mem, 0x10*512, 2048)) {
			t.Error("read something else")
		}
	}
	if len(v.buffers) != 1 || v.buffers[0] != 2 {
		t.Errorf("vector reads %v, want one of 2 buffers", v.buffers)
	}
}

func TestNoAllocations(t *testing.T) {
	_, u := newDisk(t)
	p := make([]byte, 8192)
	data := make([][]byte, 2)
	for _, digits := range []string{"28 00 00000010 00 0010", "2a 00 00000010 00 0010"} {
		c := cdb(t, digits)
		n := testing.AllocsPerRun(100, func() {
			data[0], data[1] = p[:4096], p[4096:]
			if err := u.Do(t.Context(), c, data); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", digits, n)
		}
	}
}

// FuzzCommand sends any command with any data to a disk that refuses what the
// contract does not allow; whatever the initiator sends is answered with a
// sense of its fault, never with one of the volume.
func FuzzCommand(f *testing.F) {
	for _, digits := range []string{
		"00", "03 00 00 00 ff", "12 01 83 00 ff", "15 10 0000 24", "1a 00 3f 00 ff", "25", "28 00 00000010 00 0004",
		"2a 08 00000010 00 0001", "35", "41 00 00000008 00 0010", "42 00 00000000 00 0028", "5a 00 3f 00 000000 00ff",
		"88 00 0000000000000010 00000001", "93 09 0000000000000008 00000010", "9e 10 0000000000000000 00000020",
		"a0 00 00 000000 00000010", "a8 00 000007ff 00000001",
	} {
		f.Add(cdb(f, digits)[:], make([]byte, 1024), uint16(512), false)
	}
	f.Add(cdb(f, "42 00 00000000 00 0028")[:], unmapList([2]uint64{8, 4}, [2]uint64{12, 12}), uint16(7), false)
	v := backendtest.NewMemVolume(diskSize)
	f.Fuzz(func(t *testing.T, b, data []byte, cut uint16, readOnly bool) {
		var c [16]byte
		copy(c[:], b)
		u := scsi.NewUnit(v, "disk")
		if readOnly {
			u = scsi.NewUnit(backendtest.ReadOnly(v), "disk")
		}
		at := min(int(cut), len(data))
		err := u.Do(t.Context(), &c, [][]byte{data[:at:at], data[at:]})
		if s := scsi.SenseOf(err); err != nil && s.Key != 5 && s.Key != 7 {
			t.Errorf("%x: %v", c, err)
		}
	})
}
