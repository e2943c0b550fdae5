// SPDX-License-Identifier: Apache-2.0

package ext4_test

import (
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/ext4"
)

// TestNameHash has the answers of debugfs dx_hash, but for the versions of
// unsigned bytes, which differ from the signed ones in names beyond ASCII
// only.
func TestNameHash(t *testing.T) {
	long := "long-" + strings.Repeat("n", 120)
	seed := [4]uint32{0x43f3ec23, 0x22221111, 0x44443333, 0x44444444}
	for _, c := range []struct {
		name    string
		version uint8
		seed    [4]uint32
		want    uint32
	}{
		{"hello.txt", 0, [4]uint32{}, 0x65a05776},
		{"hello.txt", 1, [4]uint32{}, 0xa26e1d86},
		{"hello.txt", 2, [4]uint32{}, 0x5107c3f2},
		{"hello.txt", 3, [4]uint32{}, 0x65a05776},
		{"hello.txt", 4, [4]uint32{}, 0xa26e1d86},
		{"hello.txt", 5, [4]uint32{}, 0x5107c3f2},
		{"ünïcödé", 0, [4]uint32{}, 0x225a136c},
		{"ünïcödé", 1, [4]uint32{}, 0xd8e0cde2},
		{"ünïcödé", 2, [4]uint32{}, 0xe7b73cae},
		{long, 0, [4]uint32{}, 0x58151fb4},
		{long, 1, [4]uint32{}, 0x5ec9bf28},
		{long, 2, [4]uint32{}, 0x75e8b0a2},
		{"hello.txt", 1, seed, 0xa2e59be0},
	} {
		if got := ext4.NameHash(c.name, c.version, c.seed); got != c.want {
			t.Errorf("%q, version %d, seed %x: got %#x, want %#x", c.name, c.version, c.seed, got, c.want)
		}
	}
}
