// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/image/vfs"
)

// An FS is an open file system: see [vfs.FileSystem]. Its files have one time,
// their Mtime. Sync must be called while no file is being written; and only
// one file is written at a time, or Writer fails with syscall.EBUSY.
type FS struct {
	dev    backend.Writer
	mapper vfs.ContentMapper // nil if the device has no target
	m      *image            // as it was with the last Sync
	out    vfs.Stream

	nodes  []*node          // by number, from 1 on; nil where a file is gone
	placed map[uint64]*node // those that are in m, by nid
	next   int64            // the block that is used next
	inodes int64            // in the file system
	held   int64            // bytes of memory that changes take, about
	inline int64            // bytes of memory that contents of files take
	open   bool             // a file is being written
}

var _ vfs.FileSystem = (*FS)(nil)

const (
	// editorBlocks bounds the metadata that an FS keeps of what it does not
	// change (16 MiB).
	editorBlocks = 16 << 20 / blockSize

	// maxHeld bounds what an FS holds of the changes until they are written
	// (1 GiB): some two million files.
	maxHeld = 1 << 30
)

// rootIno is the number of the root directory, which is known first.
const rootIno vfs.Ino = 1

// Open opens the file system on dev, which stays the caller's.
func Open(ctx context.Context, dev backend.Writer) (*FS, error) {
	m, err := openImage(ctx, dev, editorBlocks)
	if err != nil {
		return nil, fmt.Errorf("open EROFS: %w", err)
	}
	f := &FS{dev: dev, m: m, out: vfs.ContentStream(dev), placed: make(map[uint64]*node), next: m.sb.blocks, inodes: int64(m.sb.inodes)}
	f.mapper, _ = dev.(vfs.ContentMapper)
	root := f.known(m.sb.root, nil)
	n, err := f.inode(ctx, root)
	if err == nil && !n.isDir() {
		err = n.corrupt(&m.sb, "i_mode", "%#o of the root", n.mode)
	}
	if err != nil {
		return nil, fmt.Errorf("open EROFS: %w", err)
	}
	return f, nil
}

// Root returns the root directory.
func (f *FS) Root() vfs.Ino { return rootIno }

// Size returns the size of the device in bytes.
func (f *FS) Size() int64 { return f.m.sb.device }

// A node is a file that somebody has heard of.
type node struct {
	ino    vfs.Ino
	nid    uint64 // where it is on the device, if it is
	placed bool
	parent *node  // where it was found or made: of a directory, the one it is in
	draft  *draft // nil for a file that is as it is on the device
}

// A draft is how a file is to be.
type draft struct {
	inode
	xattrs []byte // what follows the inode
	body   []byte // what follows that, but in a directory that is loaded
	was    inode  // on the device
	span   int64  // bytes that the file has in its place there

	loaded  bool
	entries map[string]entry // of a directory that is loaded

	plan plan // while it is being written
}

// An entry is a name in a directory that is loaded.
type entry struct {
	node *node // nil if nobody has heard of the file
	nid  uint64
	kind vfs.Type
}

// Estimates of memory, in bytes.
const (
	nodeBytes  = 360 // a node, a draft
	entryBytes = 60  // an entry without its name
)

// hold counts memory that a change takes.
func (f *FS) hold(n int64) error {
	if n > maxHeld-f.held {
		return fmt.Errorf("changes of more than %d bytes of metadata in one layer: %w", int64(maxHeld), syscall.ENOSPC)
	}
	f.held += n
	return nil
}

// known returns the node of the inode nid, which was found in parent.
func (f *FS) known(nid uint64, parent *node) *node {
	if n := f.placed[nid]; n != nil {
		return n
	}
	n := f.newNode(parent)
	n.nid, n.placed = nid, true
	f.placed[nid] = n
	return n
}

func (f *FS) newNode(parent *node) *node {
	n := &node{ino: vfs.Ino(len(f.nodes)) + rootIno, parent: parent}
	if parent == nil {
		n.parent = n
	}
	f.nodes = append(f.nodes, n)
	return n
}

// drop forgets a file that is gone.
func (f *FS) drop(n *node) {
	f.nodes[n.ino-rootIno] = nil
	if n.placed {
		delete(f.placed, n.nid)
	}
	f.inodes = max(f.inodes-1, 0)
}

// node returns the node of ino. It fails with fs.ErrNotExist for a file that is
// gone.
func (f *FS) node(ino vfs.Ino) (*node, error) {
	if i := ino - rootIno; i < vfs.Ino(len(f.nodes)) && f.nodes[i] != nil {
		return f.nodes[i], nil
	}
	return nil, fmt.Errorf("inode %d: %w", ino, fs.ErrNotExist)
}

// inode returns how n is.
func (f *FS) inode(ctx context.Context, n *node) (*inode, error) {
	if n.draft != nil {
		return &n.draft.inode, nil
	}
	in, err := f.m.inode(ctx, n.nid)
	return &in, err
}

// old returns how n is on the device, where it must be.
func (f *FS) old(ctx context.Context, n *node) (*inode, error) {
	if n.draft != nil {
		return &n.draft.was, nil
	}
	return f.inode(ctx, n)
}

// stat returns the node ino and how it is.
func (f *FS) stat(ctx context.Context, ino vfs.Ino) (*node, *inode, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	n, err := f.node(ino)
	if err != nil {
		return nil, nil, err
	}
	in, err := f.inode(ctx, n)
	return n, in, err
}

// dir is stat of a directory.
func (f *FS) dir(ctx context.Context, ino vfs.Ino) (*node, *inode, error) {
	n, in, err := f.stat(ctx, ino)
	if err == nil && !in.isDir() {
		err = syscall.ENOTDIR
	}
	return n, in, err
}

// maxBody bounds what lies behind an inode that is edited, in bytes: a table
// of chunks may be long.
const maxBody = 4 << 20

// edit returns the draft of n.
func (f *FS) edit(ctx context.Context, n *node) (*draft, error) {
	if n.draft != nil {
		return n.draft, nil
	}
	in, err := f.m.inode(ctx, n.nid)
	if err != nil {
		return nil, err
	}
	at, size := in.body()
	d := &draft{inode: in, was: in, span: at + size - in.off}
	if size > maxBody {
		return nil, fmt.Errorf("edit inode %d, of %d chunks: %w", n.nid, in.chunks(), syscall.EFBIG)
	}
	if d.xattrs, err = f.m.xattrBody(ctx, &in); err != nil {
		return nil, err
	}
	if d.body, err = f.m.read(ctx, at, size); err != nil {
		return nil, fmt.Errorf("read what is behind inode %d: %w", n.nid, err)
	}
	if n.ino == rootIno {
		if d.span, err = f.rootSpan(ctx, d.span, in.off); err != nil {
			return nil, err
		}
	}
	if err := f.hold(nodeBytes + d.span); err != nil {
		return nil, err
	}
	n.draft = d
	return d, nil
}

// rootSpan returns how much room there is for the root, of span bytes at off:
// it cannot move far, so the zeros behind it are its own. Nothing in the rest
// of a block of metadata begins with zeros.
func (f *FS) rootSpan(ctx context.Context, span, off int64) (int64, error) {
	end := align(off+span, blockSize)
	rest, err := f.m.read(ctx, off+span, end-off-span)
	if err != nil {
		return 0, err
	}
	for _, b := range rest {
		if b != 0 {
			return span, nil
		}
	}
	return end - off, nil
}

// load returns the draft of the directory n with its entries.
func (f *FS) load(ctx context.Context, n *node) (*draft, error) {
	d, err := f.edit(ctx, n)
	if err != nil || d.loaded {
		return d, err
	}
	entries, held := make(map[string]entry), int64(0)
	for e, err := range f.m.dirents(ctx, &d.was) {
		held += entryBytes + int64(len(e.name))
		if err == nil && held > maxHeld-f.held {
			err = f.hold(held)
		}
		if err != nil {
			return nil, err
		}
		entries[string(e.name)] = entry{nid: e.nid, kind: e.kind}
	}
	d.loaded, d.entries, d.body = true, entries, nil
	return d, f.hold(held)
}
