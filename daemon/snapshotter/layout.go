// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"path/filepath"
	"strings"

	"github.com/overlaybd-go/overlaybd/daemon/referrer"
	"github.com/overlaybd-go/overlaybd/image/turbo"
)

// A layout names the files below the root directory. It is durable, and the
// reference implementation's.
type layout string

func (l layout) metadata() string        { return filepath.Join(string(l), "metadata.db") }
func (l layout) snapshots() string       { return filepath.Join(string(l), "snapshots") }
func (l layout) dir(id string) string    { return filepath.Join(l.snapshots(), id) }
func (l layout) fs(id string) string     { return filepath.Join(l.dir(id), "fs") }
func (l layout) work(id string) string   { return filepath.Join(l.dir(id), "work") }
func (l layout) block(id string) string  { return filepath.Join(l.dir(id), "block") }
func (l layout) spec(id string) string   { return filepath.Join(l.block(id), "config.v1.json") }
func (l layout) result(id string) string { return filepath.Join(l.block(id), "init-debug.log") }
func (l layout) data(id string) string   { return filepath.Join(l.block(id), "writable_data") }
func (l layout) index(id string) string  { return filepath.Join(l.block(id), "writable_index") }

// mountpoint is where the file system of the device of id is mounted.
func (l layout) mountpoint(id string) string { return filepath.Join(l.block(id), "mountpoint") }

// mark names the device of id while that is attached.
func (l layout) mark(id string) string { return filepath.Join(l.block(id), "backstore_mark") }

// unformatted exists until the device of id has got its file system.
func (l layout) unformatted(id string) string { return filepath.Join(l.block(id), "unformatted") }

// imageRef holds the reference of the image that id belongs to.
func (l layout) imageRef(id string) string { return filepath.Join(l.dir(id), "image_ref") }

// commit and sealed are layer files: one that was pulled and unpacked, and one
// made of a writable layer.
func (l layout) commit(id string) string { return filepath.Join(l.fs(id), "overlaybd.commit") }
func (l layout) sealed(id string) string { return filepath.Join(l.fs(id), "overlaybd.sealed") }

// meta is the metadata of a TurboOCI layer for a file system.
func (l layout) meta(id, fs string) string { return filepath.Join(l.fs(id), fs+turbo.MetaSuffix) }

// gzipIndex and zstdIndex are the indexes of the layer that a TurboOCI layer
// points into.
func (l layout) gzipIndex(id string) string { return filepath.Join(l.fs(id), turbo.GzipIndex) }
func (l layout) zstdIndex(id string) string { return filepath.Join(l.fs(id), turbo.ZstdIndex) }

// layerTar is an ordinary layer as it came, to be converted, and diffID holds
// the digest of its content, if that is known.
func (l layout) layerTar(id string) string { return filepath.Join(l.dir(id), "layer.tar") }
func (l layout) diffID(id string) string   { return filepath.Join(l.dir(id), "layer.diff_id") }

// temp is where a layer is converted.
func (l layout) temp(id string) string { return filepath.Join(l.dir(id), "temp") }

// onlyExt4 is made by the node's operator to have no EROFS.
func (l layout) onlyExt4() string { return filepath.Join(string(l), ".TurboOCI_ext4") }

// notLazy tells of images that were pulled as they are.
func (l layout) notLazy() string { return filepath.Join(string(l), referrer.JournalName) }

// idOf returns the snapshot whose spec file is at path, if it is one of ours.
func (l layout) idOf(path string) (id string, ok bool) {
	rest, ours := strings.CutPrefix(path, l.snapshots()+"/")
	id, _, _ = strings.Cut(rest, "/")
	return id, ours && id != "" && path == l.spec(id)
}
