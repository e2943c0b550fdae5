// SPDX-License-Identifier: Apache-2.0

// Package gzidx reads gzip files at random by an index of points at which
// decoding can start. A [Reader] inflates a stream and notes the points; a
// [Blob] is the content of an indexed file.
//
// The one thing to know: a Blob decodes whole spans, from a point to the next,
// and hands out no byte of a span that did not come out as it was when the file
// was indexed.
package gzidx
