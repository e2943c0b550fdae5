// SPDX-License-Identifier: Apache-2.0

// Package device holds the tests of block devices in use: file systems, tools
// of the distribution, verified I/O, many devices at once, and their speed.
// Each runs over every exporter that the kernel has means for, so that a new
// exporter is one entry of the table kinds. The suites in backendtest ask for
// the contract; these ask for what it is good for.
package device
