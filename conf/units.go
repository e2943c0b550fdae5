// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes: "256KiB", "20GiB" or a bare number in the file.
// Only binary units exist, so that nobody has to guess what "20GB" means.
type Size int64

const (
	kib Size = 1 << (10 * (iota + 1))
	mib
	gib
	tib
)

// units is ordered from the largest, so that the first that divides a size
// writes it shortest.
var units = []struct {
	name string
	size Size
}{{"TiB", tib}, {"GiB", gib}, {"MiB", mib}, {"KiB", kib}, {"B", 1}}

// UnmarshalText parses a size.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := string(text), Size(1)
	for _, u := range units {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimRight(n, " "), u.size
			break
		}
	}
	return s.set(string(text), number, unit)
}

// set stores number × unit, and quotes text where that is no size.
func (s *Size) set(text, number string, unit Size) error {
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil {
		return fmt.Errorf("invalid size %q: want whole bytes, KiB, MiB, GiB or TiB", text)
	}
	if Size(n) > math.MaxInt64/unit {
		return fmt.Errorf("size %q does not fit 63 bits", text)
	}
	*s = Size(n) * unit
	return nil
}

// MarshalText writes the size in the largest unit that divides it.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range units {
		if s != 0 && s%u.size == 0 && u.size > 1 {
			return fmt.Appendf(nil, "%d%s", int64(s/u.size), u.name), nil
		}
	}
	return strconv.AppendInt(nil, int64(s), 10), nil
}

// String returns the size as [Size.MarshalText] writes it.
func (s Size) String() string {
	text, _ := s.MarshalText()
	return string(text)
}

// Duration is a length of time with its unit: "30s", "5m". A bare number other
// than 0 is refused: the decoder's own durations would take it for
// nanoseconds.
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("invalid duration %q: want a number with a unit, such as \"30s\" or \"5m\"", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the duration without units that are zero: "5m", not
// "5m0s".
func (d Duration) MarshalText() ([]byte, error) {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return []byte(s), nil
}

// String returns the duration as [Duration.MarshalText] writes it.
func (d Duration) String() string {
	text, _ := d.MarshalText()
	return string(text)
}
