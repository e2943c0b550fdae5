// SPDX-License-Identifier: Apache-2.0

//go:build !race

package ext4_test

const slow = 1
