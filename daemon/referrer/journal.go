// SPDX-License-Identifier: Apache-2.0

package referrer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// JournalName is the file below the snapshotter's root in which a [Journal] is.
const JournalName = "not_lazy.json"

// maxVerdicts is how many images a Journal tells of: the last ones.
const maxVerdicts = 50

// A Verdict says why an image was pulled as it is.
type Verdict struct {
	Image    string        `json:"image"`
	Manifest digest.Digest `json:"manifest,omitempty"`
	Reason   string        `json:"reason"`
	Time     time.Time     `json:"time"`
}

// A Journal keeps the verdicts on images in a file, for people to see. It is
// safe for concurrent use by one process.
type Journal struct {
	path string

	mu  sync.Mutex // guards all and the file
	all []Verdict
}

// OpenJournal returns the journal at path. One that cannot be read is begun
// anew.
func OpenJournal(path string) *Journal {
	all, _ := ReadJournal(path)
	return &Journal{path: path, all: all}
}

// ReadJournal returns the verdicts in the file at path, the oldest first, and
// none if it does not exist.
func ReadJournal(path string) ([]Verdict, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Verdict
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return all, nil
}

// Add notes v, in place of what was said of that image before. It reports
// whether that is news: of the same manifest the first reason stands, as it is
// what the others follow from, unless v is about its first layer.
func (j *Journal) Add(v Verdict, first bool) (news bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	same := func(o Verdict) bool { return o.Image == v.Image }
	if i := slices.IndexFunc(j.all, same); i >= 0 && !first && j.all[i].Manifest == v.Manifest {
		return false, nil
	}
	j.all = append(slices.DeleteFunc(j.all, same), v)
	j.all = j.all[max(0, len(j.all)-maxVerdicts):]
	return true, j.save()
}

// Drop forgets what was said of image, which is read lazily now.
func (j *Journal) Drop(image string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := len(j.all)
	j.all = slices.DeleteFunc(j.all, func(o Verdict) bool { return o.Image == image })
	if len(j.all) == n {
		return nil
	}
	return j.save()
}

// save replaces the file. After a power cut there may be none.
func (j *Journal) save() error {
	text, err := json.MarshalIndent(j.all, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(j.path), "."+filepath.Base(j.path))
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, j.path)
}
