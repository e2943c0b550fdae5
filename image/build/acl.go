// SPDX-License-Identifier: Apache-2.0

package build

import "encoding/binary"

// A POSIX ACL as an extended attribute: a version in 4 bytes, then entries of a
// tag and permissions in 2 bytes each and an ID in 4, little-endian. See
// acl(5).
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclHeader = 4
	aclEntry  = 8

	aclOwner = 0x01
	aclGroup = 0x04
	aclMask  = 0x10
	aclOther = 0x20
)

// chmod returns acl as the kernel leaves it when the mode is set: the two
// always say the same, as whichever is looked at decides who may read the file.
// It returns nothing if acl says no more than the mode does.
func chmod(acl []byte, mode uint32) []byte {
	if len(acl) < aclHeader || len(acl)%aclEntry != aclHeader {
		return acl // which nothing will store
	}
	class := map[uint16]uint32{aclOwner: mode >> 6, aclGroup: mode >> 3, aclOther: mode}
	entries := acl[aclHeader:]
	more := false
	for e := entries; len(e) > 0; e = e[aclEntry:] {
		switch tag := binary.LittleEndian.Uint16(e); tag {
		case aclOwner, aclGroup, aclOther:
		case aclMask:
			delete(class, aclGroup) // the group's bits are the mask's
			class[aclMask] = mode >> 3
			more = true
		default:
			more = true
		}
	}
	if !more {
		return nil
	}
	for e := entries; len(e) > 0; e = e[aclEntry:] {
		if bits, ok := class[binary.LittleEndian.Uint16(e)]; ok {
			binary.LittleEndian.PutUint16(e[2:], uint16(bits&7))
		}
	}
	return acl
}
