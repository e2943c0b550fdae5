// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
)

// A journal keeps the records that are not in the index file yet for the next
// process, in case this one is killed: a disk may outlive the process that
// serves it, and whoever wrote to it will not write again. It is a file beside
// the index, in the page cache like the data that the records point to, and
// thus worth nothing after a power cut; it says in which boot it was written.
//
//	offset  bytes  field
//	0       36     boot id of the kernel, text
//	36      36     UUID of the layer, text
//	72      8      zero
//	80      16 n   records as in the index file; zero where a write was cut off
//
// Records that reached the index are left in it for a while. To insert them
// once more changes nothing, as those that came later follow.
type journal struct {
	name string
	uuid string // of the layer

	mu  sync.Mutex // guards all below, and keeps the order of records that of memory; taken after syncing and before mu of Writable
	f   *os.File   // nil until there is a record
	end int64      // where the next record goes, a byte offset
}

const (
	journalHeader = 80
	uuidSize      = 36 // of a boot id, too

	// maxJournal is how large a journal may become, in bytes, before it is
	// written anew without the records that are in the index.
	maxJournal = 4 * maxPending
)

// JournalPath returns where the journal of the layer with that index file is
// while the layer is open, and after its process was killed.
func JournalPath(index string) string { return index + ".journal" }

// start returns what the journal begins with in this boot.
func (j *journal) start() ([]byte, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	h := make([]byte, journalHeader)
	copy(h[:uuidSize], id)
	copy(h[uuidSize:2*uuidSize], j.uuid)
	return h, nil
}

// append adds records; mu is held.
func (j *journal) append(records []byte) error {
	if j.f == nil {
		if err := j.create(nil); err != nil {
			return err
		}
	}
	if _, err := j.f.WriteAt(records, j.end); err != nil {
		return err
	}
	j.end += int64(len(records))
	return nil
}

// create replaces the journal by one of the given records.
func (j *journal) create(records []byte) error {
	start, err := j.start()
	if err != nil {
		return err
	}
	tmp := j.name + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(start, records...))
	if err == nil {
		err = os.Rename(tmp, j.name)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(tmp))
	}
	old := j.f
	j.f, j.end = f, int64(len(start)+len(records))
	if old != nil {
		return old.Close()
	}
	return nil
}

// trim drops records that are in the index; pending are those that are not.
func (j *journal) trim(pending []byte) error {
	switch {
	case j.f == nil || len(pending) > 0 && j.end <= maxJournal:
		return nil
	case len(pending) > 0:
		return j.create(pending)
	}
	j.end = journalHeader
	return j.f.Truncate(journalHeader)
}

// load returns the records of a process that was killed in this boot. It is
// false if there is no journal.
func (j *journal) load() (records []record, found bool, err error) {
	b, err := os.ReadFile(j.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	start, err := j.start()
	if err != nil {
		return nil, false, err
	}
	records, err = parseJournal(b, start)
	if err != nil {
		err = fmt.Errorf("read %s: %w", j.name, err)
	}
	return records, true, err
}

// parseJournal returns the records of a journal that begins with start, none
// if it is of another boot or layer.
func parseJournal(b, start []byte) (records []record, err error) {
	if !bytes.HasPrefix(b, start) {
		return nil, nil
	}
	off := int64(len(start))
	for b = b[len(start):]; len(b) >= recordSize; b, off = b[recordSize:], off+recordSize {
		r := getRecord(b)
		if r == (record{}) {
			continue
		}
		if field, reason := r.check(math.MaxInt64); field != "" {
			return nil, corrupt(off, field, "%s", reason)
		}
		records = append(records, r)
	}
	return records, nil
}

// clear deletes a journal that is there before there is a record.
func (j *journal) clear() error {
	if err := os.Remove(j.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove deletes the journal, whose records are in the index.
func (j *journal) remove() error {
	if j.f == nil {
		return nil
	}
	err := errors.Join(j.f.Close(), os.Remove(j.name))
	j.f = nil
	return err
}
