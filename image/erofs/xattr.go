// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
)

// xattrSpaces are the name spaces. An index is durable. The second and third
// are whole names, of which nothing is left to store.
var xattrSpaces = []struct {
	index  byte
	prefix string
}{
	{1, "user."},
	{2, "system.posix_acl_access"},
	{3, "system.posix_acl_default"},
	{4, "trusted."},
	{6, "security."},
}

func isACLSpace(index byte) bool { return index == 2 || index == 3 }

// A prefix is a longer beginning of names, which a file system may define.
type prefix struct {
	index byte
	infix string
}

// spaceName returns the full name of an attribute, and none in a name space
// that is not known, which the kernel does not show either: erofs-utils fill
// room for attributes to come with name space 0.
func spaceName(index byte, rest string) (name string, ok bool) {
	for _, s := range xattrSpaces {
		if s.index == index {
			return s.prefix + rest, isACLSpace(index) == (rest == "") && !strings.ContainsRune(rest, 0)
		}
	}
	return "", true
}

// readPrefixes reads the long prefixes.
func (m *image) readPrefixes(ctx context.Context) error {
	if m.sb.incompat&incompatPrefixes == 0 {
		return nil
	}
	read := m.read
	if m.sb.compat&compatPlainPrefix == 0 && m.sb.packed != 0 {
		n, err := m.inode(ctx, m.sb.packed)
		if err != nil {
			return fmt.Errorf("packed file: %w", err)
		}
		read = func(ctx context.Context, off, k int64) ([]byte, error) {
			p := make([]byte, k)
			_, err := m.readAt(ctx, &n, p, off)
			return p, err
		}
	}
	off := m.sb.prefixOff
	for i := range m.sb.prefixes {
		size, err := read(ctx, off, 2)
		if err != nil {
			return fmt.Errorf("prefix %d of attributes: %w", i, err)
		}
		n := int64(le.Uint16(size))
		if n == 0 || n > maxName+1 {
			return corrupt("prefixes of attributes", off, "size", "%d", n)
		}
		p, err := read(ctx, off+2, n)
		if err != nil {
			return fmt.Errorf("prefix %d of attributes: %w", i, err)
		}
		m.long = append(m.long, prefix{p[0], string(p[1:])})
		off = align(off+2+n, 4)
	}
	return nil
}

// An xattrReader collects the attributes of an inode.
type xattrReader struct {
	m    *image
	ctx  context.Context // of the read
	n    *inode
	all  map[string][]byte
	held int64 // bytes
}

// xattrs returns the attributes of n.
func (m *image) xattrs(ctx context.Context, n *inode) (map[string][]byte, error) {
	body, err := m.xattrBody(ctx, n)
	if err != nil {
		return nil, err
	}
	return m.parseXattrs(ctx, n, body)
}

// parseXattrs returns the attributes that body, which follows n, leads to.
func (m *image) parseXattrs(ctx context.Context, n *inode, body []byte) (map[string][]byte, error) {
	r := xattrReader{m: m, ctx: ctx, n: n, all: make(map[string][]byte)}
	if len(body) == 0 {
		return r.all, nil
	}
	shared := int(body[xhShared]) * 4
	if shared > len(body)-xattrHead {
		return nil, r.corrupt(n.off, "h_shared_count", "%d in %d bytes", body[xhShared], len(body))
	}
	if err := r.inline(body[xattrHead+shared:]); err != nil {
		return nil, err
	}
	for ids := body[xattrHead:][:shared]; len(ids) > 0; ids = ids[4:] {
		if err := r.shared(m.sb.xattrs + int64(le.Uint32(ids))*4); err != nil {
			return nil, err
		}
	}
	return r.all, nil
}

// xattrBody returns what lies between the inode n and its content.
func (m *image) xattrBody(ctx context.Context, n *inode) ([]byte, error) {
	p, err := m.read(ctx, n.off+n.head()-int64(n.xattrs), int64(n.xattrs))
	if err != nil {
		return nil, fmt.Errorf("read attributes of inode %d: %w", m.sb.nid(n.off), err)
	}
	return p, nil
}

func (r *xattrReader) corrupt(off int64, field, format string, args ...any) error {
	return corrupt(fmt.Sprintf("attributes of inode %d", r.m.sb.nid(r.n.off)), off, field, format, args...)
}

// inline adds the attributes in p, which lie behind the inode.
func (r *xattrReader) inline(p []byte) error {
	for len(p) >= xattrEntry {
		name, value := int64(p[xeName]), int64(le.Uint16(p[xeSize:]))
		used := align(xattrEntry+name+value, 4)
		if used > int64(len(p)) {
			return r.corrupt(r.n.off, "e_value_size", "%d with %d bytes left", value, len(p))
		}
		if err := r.add(p[:xattrEntry+name+value], r.n.off); err != nil {
			return err
		}
		p = p[used:]
	}
	return nil
}

// shared adds the attribute at off.
func (r *xattrReader) shared(off int64) error {
	e, err := r.m.read(r.ctx, off, xattrEntry)
	if err == nil {
		e, err = r.m.read(r.ctx, off, xattrEntry+int64(e[xeName])+int64(le.Uint16(e[xeSize:])))
	}
	if err != nil {
		return fmt.Errorf("read a shared attribute of inode %d: %w", r.m.sb.nid(r.n.off), err)
	}
	return r.add(e, off)
}

// add adds the entry e, found at off. What is named twice counts the first
// time, as in the kernel.
func (r *xattrReader) add(e []byte, off int64) error {
	if r.held += int64(len(e)); r.held > maxAllXattr {
		return r.corrupt(off, "e_value_size", "more than %d bytes altogether", maxAllXattr)
	}
	index, rest := e[xeIndex], string(e[xattrEntry:][:e[xeName]])
	if index&xattrLong != 0 {
		i := int(index &^ xattrLong)
		if i >= len(r.m.long) {
			return r.corrupt(off, "e_name_index", "long prefix %d of %d", i, len(r.m.long))
		}
		index, rest = r.m.long[i].index, r.m.long[i].infix+rest
	}
	name, ok := spaceName(index, rest)
	if !ok {
		return r.corrupt(off, "e_name_len", "%d in name space %d", len(rest), index)
	}
	if _, ok := r.all[name]; ok || name == "" {
		return nil
	}
	r.all[name] = slices.Clone(e[xattrEntry+int(e[xeName]):])
	return nil
}

// packXattrs returns what goes behind an inode for the attributes in all. It
// fails with syscall.EOPNOTSUPP for names that cannot be stored, with
// syscall.EINVAL for what is no ACL, and with syscall.ENOSPC for too much.
func packXattrs(all map[string][]byte) ([]byte, error) {
	if len(all) == 0 {
		return nil, nil
	}
	body := make([]byte, xattrHead)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		index, rest, err := splitXattr(name)
		if err == nil && isACLSpace(index) {
			err = checkACL(all[name])
		}
		if err == nil && len(all[name]) > 0xffff {
			err = syscall.ENOSPC
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %.300q of %d bytes: %w", name, len(all[name]), err)
		}
		body = append(body, byte(len(rest)), index)
		body = le.AppendUint16(body, uint16(len(all[name])))
		body = append(append(body, rest...), all[name]...)
		body = append(body, make([]byte, -len(body)&3)...)
		if len(body) > maxXattrs {
			return nil, fmt.Errorf("%d attributes of more than %d bytes: %w", len(all), maxXattrs, syscall.ENOSPC)
		}
	}
	return body, nil
}

// splitXattr returns the name space of a name, and the rest of it.
func splitXattr(name string) (index byte, rest string, err error) {
	for _, s := range xattrSpaces {
		rest, ok := strings.CutPrefix(name, s.prefix)
		if ok && isACLSpace(s.index) == (rest == "") && len(rest) <= maxName && !strings.ContainsRune(rest, 0) {
			return s.index, rest, nil
		}
	}
	return 0, "", syscall.EOPNOTSUPP
}

// checkACL reports what the kernel would not take for a POSIX ACL: a u32
// version, then entries of u16 tag, u16 permissions and u32 id.
func checkACL(p []byte) error {
	const version = 2
	if len(p) < 4 || len(p)%8 != 4 || le.Uint32(p) != version {
		return errors.Join(errors.New("not an ACL"), syscall.EINVAL)
	}
	for e := p[4:]; len(e) > 0; e = e[8:] {
		switch tag := le.Uint16(e); tag {
		case 0x01, 0x02, 0x04, 0x08, 0x10, 0x20:
		default:
			return fmt.Errorf("ACL entry of tag %#x: %w", tag, syscall.EINVAL)
		}
	}
	return nil
}
