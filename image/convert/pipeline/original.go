// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"io"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An original is a layer of the source that the target lacks, where a turbo
// layer will look for it. It lies in a file without a name until it is stored,
// since targets read a blob more than once.
type original struct {
	*step
	f *os.File
}

// provide sees to it that the target has, or gets, the source's layer, if it
// needs that.
func (s *step) provide(ctx context.Context) error {
	desc := s.layer.Source
	if !s.Foreign || s.provided[desc.Digest] {
		return nil
	}
	s.provided[desc.Digest] = true
	if ok, err := s.Target.Has(ctx, desc); ok || err != nil {
		return err
	}
	if s.Mount != nil {
		ok, err := s.Mount(ctx, desc)
		if err != nil {
			return err
		}
		if ok {
			s.report(Event{Layer: s.layer, Stage: Mounted, Done: desc.Size, Total: desc.Size, Blob: desc})
			return nil
		}
	}
	s.original = &original{step: s}
	return nil
}

// keep takes the content.
func (o *original) keep(_ context.Context, r io.Reader) error {
	f, err := os.CreateTemp(o.opts.Dir, "original-")
	if err != nil {
		return err
	}
	if err := os.Remove(f.Name()); err != nil {
		return errors.Join(err, f.Close())
	}
	o.f = f
	o.open = append(o.open, f)
	_, err = io.Copy(f, r)
	return err
}

// store stores the content, and gives up its room on the disk.
func (o *original) store(ctx context.Context) error {
	desc := ocispec.Descriptor{MediaType: o.layer.Source.MediaType, Digest: o.layer.Source.Digest, Size: o.layer.Source.Size}
	if err := o.Target.PushBlob(ctx, desc, o.f); err != nil {
		return err
	}
	o.report(Event{Layer: o.layer, Stage: Copied, Done: desc.Size, Total: desc.Size, Blob: desc})
	return o.f.Truncate(0)
}
