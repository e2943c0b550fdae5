// SPDX-License-Identifier: Apache-2.0

// Package e2e runs the product under a real containerd: [Start] gives a test,
// benchmark or demonstration a private containerd, registry and snapshotter,
// [Debian] and [Synthetic] the images to feed them, [ReadTree] the means to
// compare what two snapshotters make of one image.
//
// Everything an [Env] starts lives in one directory below /tmp and is gone
// when the test ends; what survives is a cache of built tools and images in
// the user's cache directory, which makes the second run fast.
package e2e
