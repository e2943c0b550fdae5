// SPDX-License-Identifier: Apache-2.0

package turbo

// UnpackAll is Unpack of what is not known beforehand.
var UnpackAll = unpackAll
