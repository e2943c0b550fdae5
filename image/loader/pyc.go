// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
)

// A pyc file has 16 bytes of header, of which the first four tell the version
// of Python, and the marshalled code of a module.
const pycHeader = 16

// A python is a version of CPython whose bytecode is known.
type python struct {
	minor                              int // of 3.minor
	extendedArg, loadConst, importName byte
}

// pythonOf returns the version that a pyc file's first bytes tell. The numbers
// are durable (magic numbers and opcodes in CPython's sources).
func pythonOf(head []byte) (python, bool) {
	if len(head) < 4 || head[2] != '\r' || head[3] != '\n' {
		return python{}, false
	}
	p := python{extendedArg: 144, loadConst: 100, importName: 108}
	switch n := binary.LittleEndian.Uint16(head); {
	case n >= 3400 && n < 3420:
		p.minor = 8
	case n >= 3420 && n < 3430:
		p.minor = 9
	case n >= 3430 && n < 3450:
		p.minor = 10
	case n >= 3450 && n < 3500:
		p.minor = 11
	case n >= 3500 && n < 3550:
		p.minor = 12
	case n >= 3550 && n < 3600:
		p = python{minor: 13, extendedArg: 71, loadConst: 83, importName: 75}
	default:
		return python{}, false
	}
	return p, true
}

// tag is in the names of files made for the version.
func (p python) tag() string { return fmt.Sprintf("cpython-3%d", p.minor) }

// A module is what a pyc file tells of where it is and what it imports.
type module struct {
	file    string // the source
	imports []imported
}

// An imported module: level is how many directories it is up, 0 for one in
// sys.path; from are the names taken from it, which may be modules in it.
type imported struct {
	level int
	name  string
	from  []string
}

// parsePyc parses a pyc file.
func parsePyc(data []byte) (python, module, error) {
	p, ok := pythonOf(data)
	if !ok || len(data) < pycHeader {
		return p, module{}, errFormat
	}
	u := unmarshaller{data: string(data[pycHeader:]), python: p}
	c, ok := u.object(0).(code)
	if u.bad || !ok {
		return p, module{}, errFormat
	}
	return p, module{c.file, c.imports(p)}, nil
}

// imports finds where the code of a module, without that of its functions and
// classes, imports: level and names are the constants loaded last.
func (c code) imports(p python) (all []imported) {
	var level, from any
	arg := 0
	for ops := c.ops; len(ops) >= 2; ops = ops[2:] {
		arg = (arg<<8 | int(ops[1])) & 0xffffffff
		switch ops[0] {
		case p.extendedArg:
			continue
		case p.loadConst:
			level, from = from, element(c.consts, arg)
		case p.importName:
			name, ok := element(c.names, arg).(string)
			n, isInt := level.(int)
			if ok && isInt && n >= 0 {
				names, _ := from.([]string)
				all = append(all, imported{n, name, names})
			}
		}
		arg = 0
	}
	return all
}
