// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A record says what a device serves, and who made it. It is written before
// the device exists and removed after it, so that a process that finds a
// device that it did not make knows whose it is.
//
// Records need to survive the process and not a power cut, which ends every
// device: they are not synced. One that a power cut has spoilt is of no device.
type record struct {
	Spec     string `json:"spec"`
	Exporter string `json:"exporter"`
}

// records is a directory with one file per device, named by its id.
type records struct{ dir, tmp string }

func openRecords(stateDir string) (records, error) {
	r := records{dir: filepath.Join(stateDir, "devices"), tmp: filepath.Join(stateDir, "new-device")}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return records{}, fmt.Errorf("open records of devices: %w", err)
	}
	return r, nil
}

// checkID fails for what cannot name a file.
func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > unix.NAME_MAX || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("device id %q is not a file name: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// save writes the record of id, all of it or nothing. Calls come one at a
// time for each id, but not for all.
func (r records) save(id string, rec record) error {
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(r.tmp), filepath.Base(r.tmp)+"-") // mode 0600
	if err != nil {
		return fmt.Errorf("write record of device %s: %w", id, err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(r.dir, id))
	}
	if err != nil {
		return fmt.Errorf("write record of device %s: %w", id, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

func (r records) load(id string) (rec record, err error) {
	text, err := os.ReadFile(filepath.Join(r.dir, id))
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	if err != nil {
		return record{}, fmt.Errorf("read record of device %s: %w", id, err)
	}
	return rec, nil
}

func (r records) remove(id string) error {
	err := os.Remove(filepath.Join(r.dir, id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// all returns the records by id, and removes what is none.
func (r records) all() (map[string]record, error) {
	if err := r.sweep(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	recs := make(map[string]record)
	for _, e := range entries {
		rec, err := r.load(e.Name())
		if err != nil {
			if err := r.remove(e.Name()); err != nil {
				return nil, err
			}
			continue
		}
		recs[e.Name()] = rec
	}
	return recs, nil
}

// sweep removes what a process that was killed while it saved has left.
func (r records) sweep() error {
	names, err := filepath.Glob(r.tmp + "-*")
	for _, name := range names {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}
