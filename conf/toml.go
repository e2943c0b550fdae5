// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bufio"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

//go:embed config.toml
var sample []byte

// maxUnknown is how many unknown keys are reported: each costs a pass over the
// file, and a file with more of them is not ours.
const maxUnknown = 10

// Decode reads a TOML document over the defaults. It is strict: a key that
// does not exist, letter for letter, is an error that names it and its line.
func Decode(r io.Reader) (*Config, error) {
	data, err := readAll(r)
	if err != nil {
		return nil, err
	}
	cfg := Default()
	md, err := toml.Decode(string(data), cfg)
	if err != nil {
		return nil, err
	}
	cfg.Sources = withDefaults(cfg.Sources)
	var unknown []error
	for _, key := range md.Keys() {
		if len(unknown) < maxUnknown && !knows(reflect.TypeFor[Config](), key, "toml", exactly) {
			unknown = append(unknown, fmt.Errorf("%sunknown key %s", lineOf(data, key), key))
		}
	}
	if err := errors.Join(unknown...); err != nil {
		return nil, err
	}
	return cfg, nil
}

func exactly(a, b string) bool { return a == b }

// knows reports whether the struct t has a field for key under the given
// struct tag. The decoder's own bookkeeping will not do: it matches names
// whatever their case, so that of "root" and "Root" in one file either wins.
func knows(t reflect.Type, key []string, tag string, same func(a, b string) bool) bool {
	if len(key) == 0 {
		return true
	}
	if t.Kind() == reflect.Slice {
		t = t.Elem() // [[source]]
	}
	if t.Kind() != reflect.Struct {
		return false
	}
	for f := range t.Fields() {
		if same(f.Tag.Get(tag), key[0]) {
			return knows(f.Type, key[1:], tag, same)
		}
	}
	return false
}

// lineOf returns "line 7: " for a key of the document. The decoder tells
// positions in its errors only, so it is made to decode into a type in which
// just that key exists, and fails to decode. Where it took another key for
// that one, in other case, lineOf returns nothing.
func lineOf(doc []byte, key toml.Key) string {
	t := reflect.TypeFor[nothing]()
	for _, name := range slices.Backward(key) {
		tag := reflect.StructTag("toml:" + strconv.Quote(name))
		t = reflect.StructOf([]reflect.StructField{{Name: "Key", Type: t, Tag: tag}})
	}
	_, err := toml.Decode(string(doc), reflect.New(t).Interface())
	var at toml.ParseError
	if !errors.As(err, &at) || at.LastKey != key.String() {
		return ""
	}
	return fmt.Sprintf("line %d: ", at.Position.Line)
}

// nothing fails to decode from any value.
type nothing struct{}

func (*nothing) UnmarshalTOML(any) error { return errors.New("here") }

// WriteTOML writes the configuration as a file with every key explained.
func (c *Config) WriteTOML(w io.Writer) error {
	values, err := c.values()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	table := values
	for line := range bytes.Lines(sample) {
		text := string(line)
		if name, ok := strings.CutPrefix(text, "["); ok {
			table, _ = values[strings.TrimSuffix(name, "]\n")].(map[string]any)
		}
		if key, _, ok := strings.Cut(text, " = "); ok && !strings.HasPrefix(text, "#") {
			line, err = toml.Marshal(map[string]any{key: table[key]})
			if err != nil {
				return fmt.Errorf("write %s: %w", key, err)
			}
		}
		_, _ = out.Write(line) // Flush tells
	}
	if len(c.Sources) > 0 { // of which the sample has none
		text, err := toml.Marshal(map[string]any{"source": c.Sources})
		if err != nil {
			return fmt.Errorf("write sources: %w", err)
		}
		_, _ = out.Write(append([]byte("\n"), text...))
	}
	return out.Flush()
}

// values returns the configuration as the tables of its TOML form.
func (c *Config) values() (map[string]any, error) {
	doc, err := toml.Marshal(c)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	return values, toml.Unmarshal(doc, &values)
}
