// SPDX-License-Identifier: Apache-2.0

package erofs_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/erofs"
	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/vfs"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// golden returns the reference's turbo layer, and its tar.
func golden(t testing.TB) (layer *lsmt.Layer, content []byte) {
	t.Helper()
	dir, _ := need.Golden(t, "erofs/*", "tars/l0.tar")
	read := func(name string) memBlob { return must(os.ReadFile(filepath.Join(dir, name))) }
	target := read("tars/l0.tar")
	return must(lsmt.OpenWithTarget(t.Context(), read("erofs/l0.erofs.fs.meta"), target)), target
}

// describeTar lists the files of a tar without links and attributes, sorted.
func describeTar(t testing.TB, r io.Reader) []string {
	t.Helper()
	lines := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		data := must(io.ReadAll(tr))
		name := "/" + strings.Trim(path.Clean(h.Name), "/")
		if h.Typeflag == tar.TypeLink {
			lines[name] = strings.Replace(lines["/"+path.Clean(h.Linkname)], fmt.Sprintf("%q", "/"+path.Clean(h.Linkname)), fmt.Sprintf("%q", name), 1)
			continue
		}
		kinds := map[byte]uint32{
			tar.TypeReg: syscall.S_IFREG, tar.TypeDir: syscall.S_IFDIR, tar.TypeSymlink: syscall.S_IFLNK,
			tar.TypeChar: syscall.S_IFCHR, tar.TypeBlock: syscall.S_IFBLK, tar.TypeFifo: syscall.S_IFIFO,
		}
		a := vfs.Attr{Mode: kinds[h.Typeflag] | uint32(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid), Major: uint32(h.Devmajor), Minor: uint32(h.Devminor), Mtime: h.ModTime}
		if h.Typeflag == tar.TypeSymlink {
			a.Mode |= 0o777
		}
		xattrs := map[string][]byte{}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				xattrs[name] = []byte(v)
			}
		}
		lines[name] = line(name, a, 0, int64(len(data)+len(h.Linkname)), body(data, h.Linkname), xattrs)
	}
	delete(lines, "/")
	var all []string
	for _, l := range lines {
		all = append(all, l)
	}
	slices.Sort(all)
	return all
}

func TestGoldenRead(t *testing.T) {
	layer, content := golden(t)
	r := must(erofs.NewReader(t.Context(), must(lsmt.Merge([]*lsmt.Layer{layer}))))
	named := map[string]bool{}
	want := describeTar(t, bytes.NewReader(content))
	for i, l := range want {
		want[i] = overlay.ReplaceAllString(roughly(l), "")
		named[nameOf(l)] = true
	}
	var got []string
	for _, l := range must(describeFS(t.Context(), r, r.Root(), "/")) {
		if named[nameOf(l)] { // or made for what is in it
			got = append(got, roughly(l))
		}
	}
	slices.Sort(got)
	if err := sameLines(got, want); err != nil {
		t.Error(err)
	}
}

// roughly leaves out of a line what the tar does not say, and fractions of
// seconds, which the reference gets wrong.
func roughly(line string) string {
	return fraction.ReplaceAllString(links.ReplaceAllString(line, "links 0"), "$1")
}

// overlay matches attributes of overlayfs, which the reference leaves out.
var overlay = regexp.MustCompile(` trusted\.overlay\.[a-z]+=[0-9a-f]*`)

var fraction = regexp.MustCompile(`( m -?[0-9]+)\.[0-9]+`)
