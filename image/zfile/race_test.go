// SPDX-License-Identifier: Apache-2.0

//go:build race

package zfile_test

const raceEnabled = true
