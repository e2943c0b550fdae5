// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"context"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// An extension module may import others by itself, as those that Cython has
// made do. It has their full names among its strings.

const (
	// maxExtension is the largest extension module, in bytes, that is searched
	// for names: to decompress all of it costs 4 ms per MiB.
	maxExtension = 2 << 20

	// maxStrings bounds the names that are looked up for one.
	maxStrings = 256

	// maxString is the longest name, in bytes.
	maxString = 128
)

var extensionName = regexp.MustCompile(`\.cpython-3([0-9]{1,2})-[^/]*\.so$`)

// extension returns the Python that f is an extension module for, if it is one
// that is to be searched for names.
func (f *file) extension() (p python, ok bool) {
	m := extensionName.FindStringSubmatch(f.name)
	if m == nil || f.size > maxExtension {
		return p, false
	}
	p.minor, _ = strconv.Atoi(m[1]) // as the pattern has it
	return p, true
}

// openNames asks for the modules that f, all of which has arrived, names.
func (s *scout) openNames(ctx context.Context, f *file) {
	p, ok := f.extension()
	if !ok {
		return
	}
	im := importer{s: s, ctx: ctx, python: p, dir: path.Dir(f.name)}
	im.roots = im.path()
	for _, name := range moduleNames(f.head(f.size)) {
		if s.tired() {
			return
		}
		im.take(imported{name: name})
	}
}

// moduleNames returns the strings in data that could be full names of modules in
// packages, each once.
func moduleNames(data []byte) (names []string) {
	seen := make(map[string]bool)
	for len(data) > 0 && len(names) < maxStrings {
		var text []byte
		text, data, _ = bytes.Cut(data, []byte{0})
		if len(text) > maxString || !isModuleName(text) || seen[string(text)] {
			continue
		}
		seen[string(text)] = true
		names = append(names, string(text))
	}
	return names
}

// isModuleName reports whether text is two or more words joined by dots.
func isModuleName(text []byte) bool {
	words := 0
	for word := range strings.SplitSeq(string(text), ".") {
		if !isWord(word) {
			return false
		}
		words++
	}
	return words > 1
}

func isWord(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
