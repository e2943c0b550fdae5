// SPDX-License-Identifier: Apache-2.0

package lsmt

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A killed layer is one whose process has ended without a word: its files are
// as they are, and nothing more will be written to them.
type killed struct{ data, index string }

// kill copies the files of the layer at from, as they are now.
func kill(t testing.TB, from killed) killed {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Dir(from.data))); err != nil {
		t.Fatal(err)
	}
	return killed{filepath.Join(dir, "data"), filepath.Join(dir, "index")}
}

// openLayer opens a layer, or creates it with the options.
func openLayer(t testing.TB, k killed, create *CreateOptions) (*Writable, *Disk) {
	t.Helper()
	var w *Writable
	var err error
	if create != nil {
		w, err = Create(k.data, k.index, *create)
	} else {
		w, err = OpenWritable(k.data, k.index, OpenOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := Overlay(nil, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() }) // again, mostly
	return w, d
}

func sector(fill byte) []byte { return bytes.Repeat([]byte{fill}, SectorSize) }

// TestKilled: a write that has returned is there after the process was killed,
// synced or not, and what is trimmed is not brought back.
func TestKilled(t *testing.T) {
	for name, sparse := range map[string]bool{"append": false, "sparse": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			k := killed{filepath.Join(dir, "data"), filepath.Join(dir, "index")}
			_, d := openLayer(t, k, &CreateOptions{VirtualSize: 1 << 20, Sparse: sparse})
			want := make([]byte, 1<<20)
			for i := range 40 {
				lba := int64(i*7%16) * SectorSize
				if _, err := d.WriteAt(t.Context(), sector(byte(i)), lba); err != nil {
					t.Fatal(err)
				}
				copy(want[lba:], sector(byte(i)))
				switch i % 5 {
				case 1:
					if err := d.Discard(t.Context(), lba, SectorSize); err != nil {
						t.Fatal(err)
					}
					clear(want[lba:][:SectorSize])
				case 3:
					if err := d.Sync(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if i%4 == 0 {
					k = kill(t, k)
					_, d = openLayer(t, k, nil)
				}
				got := make([]byte, len(want))
				if _, err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("after write %d: %v, or wrong bytes", i, err)
				}
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(JournalPath(k.index)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the journal of a closed layer: %v, want none", err)
			}
		})
	}
}

// TestJournalIsTrimmed: the journal does not grow for ever under writes that
// never stop.
func TestJournalIsTrimmed(t *testing.T) {
	dir := t.TempDir()
	j := &journal{name: JournalPath(filepath.Join(dir, "index"))}
	records := bytes.Repeat(appendRecord(nil, newRecord(1, 1, firstSector)), 1<<10)
	for range maxJournal/len(records) + 1 {
		if err := j.append(records); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.trim(records); err != nil || j.end != journalHeader+int64(len(records)) {
		t.Errorf("the journal ends at %d, %v", j.end, err)
	}
	got, _, err := j.load()
	if err != nil || len(got) != 1<<10 {
		t.Errorf("it holds %d records, %v", len(got), err)
	}
	if err := errors.Join(j.trim(nil), j.remove()); err != nil {
		t.Error(err)
	}
}

// TestJournalOfAnother: what is of another boot, or of a layer that had the
// name before, is left out.
func TestJournalOfAnother(t *testing.T) {
	dir := t.TempDir()
	k := killed{filepath.Join(dir, "data"), filepath.Join(dir, "index")}
	_, d := openLayer(t, k, &CreateOptions{VirtualSize: 1 << 20, UUID: "6f4a1b63-1111-4c3c-8b0a-000000000001"})
	if _, err := d.WriteAt(t.Context(), sector(1), 0); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(journal []byte){
		"boot":  func(j []byte) { j[0] ^= 1 },
		"layer": func(j []byte) { j[uuidSize+1] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			after := kill(t, k)
			j, err := os.ReadFile(JournalPath(after.index))
			if err != nil {
				t.Fatal(err)
			}
			spoil(j)
			if err := os.WriteFile(JournalPath(after.index), j, 0o600); err != nil {
				t.Fatal(err)
			}
			_, d := openLayer(t, after, nil)
			got := make([]byte, SectorSize)
			if _, err := d.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, make([]byte, SectorSize)) {
				t.Errorf("%v, or the write is there", err)
			}
		})
	}
}

// TestJournalOfReplaced: a new layer under the name of one that was killed does
// not get its writes.
func TestJournalOfReplaced(t *testing.T) {
	dir := t.TempDir()
	k := killed{filepath.Join(dir, "data"), filepath.Join(dir, "index")}
	_, d := openLayer(t, k, &CreateOptions{VirtualSize: 1 << 20})
	if _, err := d.WriteAt(t.Context(), sector(1), 0); err != nil {
		t.Fatal(err)
	}
	k = kill(t, k)
	if err := errors.Join(os.Remove(k.data), os.Remove(k.index)); err != nil {
		t.Fatal(err)
	}
	openLayer(t, k, &CreateOptions{VirtualSize: 1 << 20})
	_, d = openLayer(t, kill(t, k), nil)
	got := make([]byte, SectorSize)
	if _, err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, make([]byte, SectorSize)) {
		t.Errorf("%v, or the write of the old layer is there", err)
	}
}

func FuzzParseJournal(f *testing.F) {
	start := make([]byte, journalHeader)
	f.Add(start)
	f.Add(appendRecord(start, newRecord(1, 2, firstSector)))
	f.Add(append(start, make([]byte, 3*recordSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := parseJournal(b, start)
		for _, r := range records {
			if field, _ := r.check(1 << 60); field != "" || err != nil {
				t.Errorf("record %v with error %v", r, err)
			}
		}
	})
}
