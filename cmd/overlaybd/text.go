// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// size returns n bytes as people write it.
func size(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, unit := float64(n)/(1<<10), 0
	for f >= 1<<10 && unit < 5 {
		f, unit = f/(1<<10), unit+1
	}
	text := strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0")
	return text + " " + string("KMGTPE"[unit]) + "iB"
}

// printable returns s, quoted if a terminal might act on it: text in layers
// comes from strangers.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.ContainsRune(s, unicode.ReplacementChar) {
		return strconv.Quote(s)
	}
	return s
}

// uuid returns the UUID s as text of a header, which may be any bytes.
func uuid(s string) string {
	if strings.Trim(s, "0-") == "" {
		return "none"
	}
	return printable(s)
}

// toJSON returns v, a struct of this package, as JSON.
func toJSON(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // no such struct holds what JSON cannot
	}
	return string(b) + "\n"
}
