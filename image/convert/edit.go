// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// set returns the JSON object text with the member that path leads to replaced
// by value. No other byte changes. The member must exist.
func set(text []byte, value any, path ...string) ([]byte, error) {
	start, end, err := member(text, path[0])
	if err != nil {
		return nil, err
	}
	var inner []byte
	if len(path) > 1 {
		inner, err = set(text[start:end], value, path[1:]...)
	} else {
		inner, err = json.Marshal(value)
	}
	if err != nil {
		return nil, err
	}
	return slices.Concat(text[:start], inner, text[end:]), nil
}

// member returns where in the JSON object text the value of key lies. Keys are
// compared as encoding/json does, and one that is there twice is refused: what
// its value is depends on who reads it.
func member(text []byte, key string) (start, end int, err error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return 0, 0, fmt.Errorf("parent of %q is not an object", key)
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return 0, 0, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return 0, 0, err
		}
		if s, ok := name.(string); !ok || !strings.EqualFold(s, key) {
			continue
		}
		if end != 0 {
			return 0, 0, fmt.Errorf("member %q is there twice", key)
		}
		end = int(dec.InputOffset())
		start = end - len(value)
	}
	if end == 0 {
		return 0, 0, fmt.Errorf("no member %q", key)
	}
	return start, end, nil
}
