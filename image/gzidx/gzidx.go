// SPDX-License-Identifier: Apache-2.0

// Package gzidx reads gzip files at random by an index of points at which
// decoding can start. A [Reader] inflates a stream and notes the points; a
// [Blob] is the content of an indexed file.
//
// The one thing to know: a Blob decodes spans, from a point to the next, and
// hands out no byte before it knows that it is what it was when the file was
// indexed. [Reader] writes a checksum for each 64 KiB of a span, which are handed
// out as soon as they are decoded. The reference's indexes have none: there a
// span must end at the very bit where the next begins, and with the bytes of the
// next one's window, which finds other files and broken ones, but not every
// change of a few bits, and is known at the end of the span only.
//
// # Format
//
// The file is that of the reference (overlaybd's gzindex), which reads ours,
// too. All integers are little-endian.
//
//	0            header, 333 bytes
//	333          windows: 32 KiB before each point, oldest byte first; each a
//	             zlib stream of its own
//	…            checksums of the content; ours
//	index start  points, 29 bytes each; all of them one zlib stream
//
// The header is
//
//	off  size  field
//	  0     8  magic "ddgzidx\0"
//	  8     2  version: major 1, minor 0
//	 10     1  1; 0 if windows and points are not compressed
//	 11     1  level of compression
//	 12     1  0
//	 13     4  span: about how many bytes of content lie between points
//	 17     4  32768, size of windows
//	 21     4  29, size of a point
//	 25     8  number of points
//	 33     8  size of the gzip file
//	 41     8  size of this file
//	 49     8  size of the content
//	 57     8  "spansums", if there are checksums
//	 65     1  1, their version
//	 66     8  where they are: byte of this file
//	 74     8  their size, 4 bytes each
//	 82     4  CRC-32C of them
//	313     8  index start: byte of this file
//	321     8  size of the points as they are stored
//	329     4  CRC-32C of the 329 bytes above, without inversion
//
// in which all else is zero, and a point
//
//	off  size  field
//	  0     8  bytes of content before it
//	  8     8  bytes of the gzip file before it, rounded up
//	 16     8  where its window is: byte of this file
//	 24     1  how many bits of the last of these bytes are behind it
//	 25     4  size of its window as it is stored
//
// Points are boundaries of DEFLATE blocks: for each multiple of the span, the
// last that is not behind it. The first is always a point. A span is what lies
// between a point and the next. Its content has a checksum for each piece of 64
// KiB from its start on, the last of which may be shorter: the CRC-32C of the
// piece. The checksums of one span follow those of the one before.
//
// Windows are most of an index. Of ours, the bytes that nothing refers to are
// zeros, which compress well. It takes away half and more, and whoever decodes
// from the point on, for as long as they like, sees no difference.
//
// Where a file has more than one member, decoding goes on behind the trailer of
// one with the header of the next, and a point may lie behind a header: all
// windows of a later member hold its own content, and zeros before. The
// reference indexes the first member alone.
package gzidx
