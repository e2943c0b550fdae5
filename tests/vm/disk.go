// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A tree collects, in a directory of the host, the files of a guest. The first
// error is kept.
type tree struct {
	dir  string
	size int64 // bytes of all files
	err  error
}

// host adds the host's file src under name, unless there is one.
func (t *tree) host(name, src string) {
	if t.err == nil {
		t.err = t.copy(filepath.Join(t.dir, name), src)
	}
}

func (t *tree) copy(dst, src string) error {
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in)
	t.size += n
	return errors.Join(err, out.Close())
}

// program adds a program of the host and the libraries it is linked with, each
// under its own path.
func (t *tree) program(ctx context.Context, name string) {
	t.host(name, name)
	out, err := exec.CommandContext(ctx, "ldd", name).CombinedOutput()
	if err != nil {
		if !strings.Contains(string(out), "not a dynamic executable") && t.err == nil {
			t.err = fmt.Errorf("ldd %s: %w\n%s", name, err, out)
		}
		return
	}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/") {
			t.host(word, word)
		}
	}
}

// writeDisk makes the guest's disk: an ext4 file system with its programs and
// files, and space for more.
func (g *Guest) writeDisk(ctx context.Context, dir, disk string) error {
	t := &tree{dir: filepath.Join(dir, "root")}
	for _, p := range g.Programs {
		t.program(ctx, p)
	}
	for name, src := range g.Files {
		t.host(name, src)
	}
	for _, name := range []string{"dev", "proc", "sys", "tmp", "run", "etc", "var"} {
		t.err = errors.Join(t.err, os.MkdirAll(filepath.Join(t.dir, name), 0o755))
	}
	if t.err != nil {
		return t.err
	}
	defer os.RemoveAll(t.dir) //nolint:errcheck // the caller's directory goes, too
	size := t.size*5/4 + g.Space + 32<<20
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", t.dir, disk, fmt.Sprintf("%dk", size>>10))
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Err != nil { // not where this user looks
		cmd.Path, cmd.Err = "/usr/sbin/mkfs.ext4", nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}
