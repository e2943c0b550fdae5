// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockDir creates dir if need be and takes it for this process. The kernel
// gives it back when the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("directory is in use by another process")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	return f, nil
}

// scanDir returns the blobs in dir, and deletes halves of blobs. Files whose
// names are not of ours are left alone.
func scanDir(dir string) (map[key]idleBlob, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	blobs := make(map[key]idleBlob)
	for _, e := range entries {
		k, ok := parseHex(strings.TrimSuffix(strings.TrimSuffix(e.Name(), tagsSuffix), dataSuffix))
		if _, seen := blobs[k]; !ok || seen || filepath.Ext(e.Name()) == "" {
			continue
		}
		b, err := statBlob(dir, k)
		if err == nil {
			blobs[k] = b
			continue
		}
		_ = removeFiles(dir, k) // if it stays, it is met again when the blob is written
	}
	return blobs, nil
}

// statBlob looks at the two files of blob k.
func statBlob(dir string, k key) (idleBlob, error) {
	data, err := os.Lstat(dataName(dir, k))
	if err != nil {
		return idleBlob{}, err
	}
	tags, err := os.Lstat(tagsName(dir, k))
	if err != nil {
		return idleBlob{}, err
	}
	if !data.Mode().IsRegular() || !tags.Mode().IsRegular() {
		return idleBlob{}, fmt.Errorf("files of blob %s are not regular", k)
	}
	return idleBlob{used: allocated(data) + allocated(tags), lastUsed: tags.ModTime()}, nil
}
