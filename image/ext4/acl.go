// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"errors"
	"fmt"
	"syscall"
)

// A POSIX ACL, in a form of its own on disk and another for users. Both are
// durable.
//
//	disk  0 u32 1, entries of u16 tag, u16 permissions and, with the tags of a
//	      named user or group only, u32 id
//	user  0 u32 2, entries of u16 tag, u16 permissions, u32 id
const (
	aclDiskVersion = 1
	aclUserVersion = 2
	aclUserTag     = 0x02
	aclGroupTag    = 0x08
	aclNoID        = ^uint32(0)
)

func isACLSpace(index byte) bool { return index == spaceACLAccess || index == spaceACLDefault }

func isACLTag(tag uint16) bool {
	switch tag {
	case 0x01, aclUserTag, 0x04, aclGroupTag, 0x10, 0x20:
		return true
	}
	return false
}

func hasID(tag uint16) bool { return tag == aclUserTag || tag == aclGroupTag }

// storeACL turns an ACL from the form for users to the one on disk.
func storeACL(user []byte) ([]byte, error) {
	if len(user) < 4 || len(user)%8 != 4 || le.Uint32(user) != aclUserVersion {
		return nil, fmt.Errorf("ACL of %d bytes: %w", len(user), syscall.EINVAL)
	}
	disk := le.AppendUint32(nil, aclDiskVersion)
	for e := user[4:]; len(e) > 0; e = e[8:] {
		tag := le.Uint16(e)
		if !isACLTag(tag) {
			return nil, fmt.Errorf("ACL entry of tag %#x: %w", tag, syscall.EINVAL)
		}
		disk = append(disk, e[:4]...)
		if hasID(tag) {
			disk = append(disk, e[4:8]...)
		}
	}
	return disk, nil
}

// loadACL turns an ACL from the form on disk to the one for users.
func loadACL(disk []byte) ([]byte, error) {
	if len(disk) < 4 || le.Uint32(disk) != aclDiskVersion {
		return nil, errors.New("not an ACL")
	}
	user := le.AppendUint32(nil, aclUserVersion)
	for e := disk[4:]; len(e) > 0; {
		if len(e) < 4 || !isACLTag(le.Uint16(e)) || hasID(le.Uint16(e)) && len(e) < 8 {
			return nil, errors.New("bad entry in an ACL")
		}
		user = append(user, e[:4]...)
		id := aclNoID
		n := 4
		if hasID(le.Uint16(e)) {
			id, n = le.Uint32(e[4:]), 8
		}
		user = le.AppendUint32(user, id)
		e = e[n:]
	}
	return user, nil
}
