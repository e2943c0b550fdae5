// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A record says that the kernel's device of a number is ours, if it bears the
// tag, and what we call it. It is written before the device is made and removed
// after it is gone, so that no device is ever without one. One that is lost in
// a cut of power needs none: so is its device.
//
// The file is called by the number and holds 16 digits of the tag, a line
// break and the id.
type record struct {
	number uint32
	tag    uint64
	id     string
}

const tagDigits = 16

func (r record) encode() []byte { return fmt.Appendf(nil, "%0*x\n%s", tagDigits, r.tag, r.id) }

func decodeRecord(number uint32, b []byte) (record, error) {
	digits, id, ok := bytes.Cut(b, []byte("\n"))
	tag, err := strconv.ParseUint(string(digits), 16, 64)
	r := record{number, tag, string(id)}
	if !ok || err != nil || checkID(r.id) != nil || !bytes.Equal(r.encode(), b) {
		return record{}, fmt.Errorf("record %d is damaged: %q", number, b[:min(len(b), 2*maxID)])
	}
	return r, nil
}

// maxID is how long an id may be, in bytes: that of a file name.
const maxID = 255

func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > maxID || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("id is not a file name of up to %d bytes: %w", maxID, fs.ErrInvalid)
	}
	return nil
}

// records are the files of a directory.
type records struct{ dir string }

func openRecords(dir string) (records, error) {
	return records{dir}, os.MkdirAll(dir, 0o700)
}

func (s records) path(number uint32) string {
	return filepath.Join(s.dir, strconv.FormatUint(uint64(number), 10))
}

// put writes a record, whole or not at all.
func (s records) put(r record) error {
	const unfinished = ".new"
	name := s.path(r.number)
	if err := os.WriteFile(name+unfinished, r.encode(), 0o600); err != nil {
		return err
	}
	return os.Rename(name+unfinished, name)
}

func (s records) remove(number uint32) error {
	if err := os.Remove(s.path(number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// numbers returns the numbers of all records.
func (s records) numbers() ([]uint32, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var all []uint32
	for _, f := range files {
		if n, err := strconv.ParseUint(f.Name(), 10, 32); err == nil { // others are not finished, so without a device
			all = append(all, uint32(n))
		}
	}
	return all, nil
}

func (s records) get(number uint32) (record, error) {
	b, err := os.ReadFile(s.path(number))
	if err != nil {
		return record{}, err
	}
	return decodeRecord(number, b)
}
