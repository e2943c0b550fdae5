// SPDX-License-Identifier: Apache-2.0

//go:build race

package lsmt_test

const raceEnabled = true
