// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// An editor changes a JSON object member by member. After an error it does
// nothing more.
type editor struct {
	text []byte
	err  error
}

// set replaces a member that must be there.
func (e *editor) set(value any, path ...string) {
	if e.err == nil {
		e.text, e.err = set(e.text, value, path...)
	}
}

// put replaces a member, or adds it as the first.
func (e *editor) put(value any, key string) {
	if e.err == nil {
		e.text, e.err = put(e.text, value, key)
	}
}

// flattenHistory notes in a config's history that only its last step has left
// a layer behind. A config without history needs no note.
func (e *editor) flattenHistory() {
	start, end, err := member(e.text, "history")
	if errors.Is(err, errNoMember) || e.err != nil {
		return
	}
	var steps []json.RawMessage
	if err == nil {
		err = json.Unmarshal(e.text[start:end], &steps)
	}
	last := lastLayer(steps)
	for i := range steps[:max(last, 0)] {
		if err == nil {
			steps[i], err = put(steps[i], true, "empty_layer")
		}
	}
	if e.err = err; err == nil {
		e.set(steps, "history")
	}
}

// lastLayer returns the index of the last step that made a layer, or -1.
func lastLayer(steps []json.RawMessage) int {
	for i, text := range slices.Backward(steps) {
		var step struct {
			Empty bool `json:"empty_layer"`
		}
		if json.Unmarshal(text, &step) == nil && !step.Empty {
			return i
		}
	}
	return -1
}

// errNoMember says that an object lacks a member.
var errNoMember = errors.New("no such member")

// put returns the JSON object text with the member key set to value. It is
// added in front if it is not there.
func put(text []byte, value any, key string) ([]byte, error) {
	edited, err := set(text, value, key)
	if !errors.Is(err, errNoMember) {
		return edited, err
	}
	inner, err := json.Marshal(map[string]any{key: value})
	if err != nil {
		return nil, err
	}
	open := bytes.IndexByte(text, '{') + 1
	inner = inner[1 : len(inner)-1]
	if !bytes.HasPrefix(bytes.TrimSpace(text[open:]), []byte("}")) {
		inner = append(inner, ',')
	}
	return slices.Concat(text[:open], inner, text[open:]), nil
}

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
		return 0, 0, fmt.Errorf("%w: %q", errNoMember, key)
	}
	return start, end, nil
}
