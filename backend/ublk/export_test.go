// SPDX-License-Identifier: Apache-2.0

package ublk

import "github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"

// NewOld returns an exporter that speaks to the driver as to its first version,
// with the commands it had and none of its later features.
func NewOld(opts Options) (*Exporter, error) { return open(opts, 0) }

// NewCopied returns an exporter to and from whose memory the kernel copies the
// data of requests.
func NewCopied(opts Options) (*Exporter, error) {
	return open(opts, wanted&^driver.UserCopy)
}
