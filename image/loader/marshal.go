// SPDX-License-Identifier: Apache-2.0

package loader

import "encoding/binary"

// A code is what is kept of a marshalled code object. Its constants and names
// are as the unmarshaller gives a tuple.
type code struct {
	ops, file     string
	consts, names any
}

// element returns element i of a tuple, nil if there is none.
func element(tuple any, i int) any {
	switch t := tuple.(type) {
	case []any:
		if i < len(t) {
			return t[i]
		}
	case []string:
		if i < len(t) {
			return t[i]
		}
	}
	return nil
}

// An unmarshaller reads objects as CPython's marshal writes them: a byte of
// type, with the highest bit set if later objects may refer to this one, and
// what the type needs. It keeps strings, integers, tuples and code, and takes
// anything else for nil. Strings are parts of data.
//
// The memory it takes is a small multiple of data's: each object has a byte at
// least there.
type unmarshaller struct {
	data   string
	python python
	refs   []any
	bad    bool // data is damaged; all is nil from there on
}

// maxNesting bounds the depth of objects; functions within functions make it.
const maxNesting = 200

// object reads an object.
func (u *unmarshaller) object(depth int) any {
	kind := u.byte()
	if depth > maxNesting || u.bad {
		u.bad = true
		return nil
	}
	if kind&0x80 == 0 {
		return u.value(kind, depth)
	}
	i := len(u.refs)
	u.refs = append(u.refs, nil)
	v := u.value(kind&0x7f, depth)
	u.refs[i] = v
	return v
}

// value reads the rest of an object.
func (u *unmarshaller) value(kind byte, depth int) any {
	switch kind {
	case '0', 'N', 'F', 'T', 'S', '.':
		return nil
	case 'i':
		return int(int32(u.long()))
	case 'I', 'g':
		u.skip(8)
	case 'y':
		u.skip(16)
	case 'f':
		u.skip(int(u.byte()))
	case 'x':
		u.skip(int(u.byte()))
		u.skip(int(u.byte()))
	case 'l':
		n := int(int32(u.long()))
		u.skip(2 * max(n, -n))
	case 's', 't', 'u', 'a', 'A':
		return u.skip(int(u.long()))
	case 'z', 'Z':
		return u.skip(int(u.byte()))
	case ')':
		return u.objects(int(u.byte()), depth)
	case '(', '[', '<', '>':
		return u.objects(int(u.long()), depth)
	case '{':
		u.dict(depth)
	case 'c':
		return u.code(depth)
	case 'r':
		return u.ref(int(u.long()))
	default:
		u.bad = true
	}
	return nil
}

// objects reads n objects: as strings, if all are.
func (u *unmarshaller) objects(n, depth int) any {
	all, strings := []any{}, []string{}
	for range n {
		v := u.object(depth + 1)
		if u.bad {
			return nil
		}
		all = append(all, v)
		if s, ok := v.(string); ok {
			strings = append(strings, s)
		}
	}
	if len(strings) == n {
		return strings
	}
	return all
}

// dict passes over keys and values up to a key that is none.
func (u *unmarshaller) dict(depth int) {
	for !u.bad {
		if len(u.data) > 0 && u.data[0]&0x7f == '0' {
			u.byte()
			return
		}
		u.object(depth + 1)
		u.object(depth + 1)
	}
}

func (u *unmarshaller) ref(i int) any {
	if i >= len(u.refs) {
		u.bad = true
		return nil
	}
	return u.refs[i]
}

// code reads a code object, whose members depend on the version.
func (u *unmarshaller) code(depth int) any {
	numbers, rest := 6, 3 // from argcount to flags; between names and file
	if u.python.minor >= 11 {
		numbers, rest = 5, 2
	}
	u.skip(4 * numbers)
	next := func() any { return u.object(depth + 1) }
	var c code
	c.ops, _ = next().(string)
	c.consts, c.names = next(), next()
	for range rest {
		next()
	}
	c.file, _ = next().(string)
	next() // name
	if u.python.minor < 11 {
		u.skip(4) // first line
		next()    // line table
		return c
	}
	next() // qualified name
	u.skip(4)
	next()
	next() // exceptions
	return c
}

func (u *unmarshaller) byte() byte {
	b := u.skip(1)
	if b == "" {
		return 0
	}
	return b[0]
}

func (u *unmarshaller) long() uint32 {
	b := u.skip(4)
	if b == "" {
		return 0
	}
	return binary.LittleEndian.Uint32([]byte(b))
}

// skip returns the next n bytes.
func (u *unmarshaller) skip(n int) string {
	if n < 0 || n > len(u.data) {
		u.bad = true
		u.data = ""
		return ""
	}
	b := u.data[:n]
	u.data = u.data[n:]
	return b
}
