// SPDX-License-Identifier: Apache-2.0

//go:build race

package erofs_test

// slow divides the work of tests that take too long under the race detector,
// which has nothing to find in a package without goroutines.
const slow = 8
