// SPDX-License-Identifier: Apache-2.0

package blockd

import (
	"errors"
	"io/fs"

	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

// classes lists under which errdefs class each of our errors crosses the API.
var classes = []struct{ is, class error }{
	{backend.ErrBusy, errdefs.ErrFailedPrecondition},
	{fetcher.ErrNotFound, errdefs.ErrNotFound},
	{fetcher.ErrUnauthorized, errdefs.ErrPermissionDenied},
	{fetcher.ErrTemporary, errdefs.ErrUnavailable},
	{fs.ErrNotExist, errdefs.ErrNotFound},
	{fs.ErrExist, errdefs.ErrAlreadyExists},
	{errors.ErrUnsupported, errdefs.ErrNotImplemented},
}

// classify returns err so that errors.Is also finds its errdefs class.
func classify(err error) error {
	for _, c := range classes {
		if errors.Is(err, c.is) {
			return classified{err, c.class}
		}
	}
	return err
}

// classified is an error of a class that its text need not repeat.
type classified struct {
	error
	class error
}

func (c classified) Unwrap() []error { return []error{c.error, c.class} }
