// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"errors"
	"io"
)

// stream is a range of a blob being read.
type stream struct {
	body     io.ReadCloser // nil when there is nothing to read
	left     int64
	end      error // after the last byte; nil means io.EOF
	describe func(error) error
}

func (s *stream) Read(p []byte) (int, error) {
	if s.left == 0 {
		if s.end != nil {
			return 0, s.end
		}
		return 0, io.EOF
	}
	n, err := s.body.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	switch {
	case s.left == 0:
		err = nil // whatever comes after the range is none of ours
	case errors.Is(err, io.EOF):
		err = s.describe(Temporary("%d bytes are missing: %w", s.left, io.ErrUnexpectedEOF))
	case err != nil:
		err = s.describe(err)
	}
	return n, err
}

func (s *stream) Close() error {
	if s.body == nil {
		return nil
	}
	return s.body.Close()
}
