// SPDX-License-Identifier: Apache-2.0

package need

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Cached returns the directory name in the user's cache, where what took long
// to make is kept for the next run. It is made by fill, which gets an empty
// directory, unless an earlier run did. Test binaries that run at the same
// time wait for each other.
func Cached(t testing.TB, name string, fill func(dir string)) string {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "overlaybd-test", name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), name+".tmp-") //nolint:usetesting // renamed into the cache, so on its file system
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // gone already once renamed
	fill(tmp)
	if err := errors.Join(os.Chmod(tmp, 0o755), os.Rename(tmp, dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}
