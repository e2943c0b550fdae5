// SPDX-License-Identifier: Apache-2.0

//go:build !race

package erofs_test

const slow = 1
