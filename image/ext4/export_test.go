// SPDX-License-Identifier: Apache-2.0

package ext4

// LimitCache makes f keep no more than n metadata blocks between operations.
func LimitCache(f *FS, n int) { f.cache.limit = n }

// NameHash is nameHash.
var NameHash = nameHash
