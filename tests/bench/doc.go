// SPDX-License-Identifier: Apache-2.0

// Package bench holds what measures starts of real containers as they are on a
// network; there is no code in it but tests and benchmarks. The network is
// that of package shape.
//
// Seconds depend on the machine and are only good as ratios within one run.
// Requests, bytes and chains hardly do: they are what to compare over time.
package bench
