// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"io"

	"github.com/overlaybd-go/overlaybd/image/convert"
)

// A job is the building of one image, in one or several formats.
type job struct {
	*Pipeline
	img    convert.Image
	tracks []*track
	next   *download // of the layer after the one being applied; nil for none
}

func (j *job) close() error {
	if j.next != nil {
		j.next.close()
	}
	var errs []error
	for _, t := range j.tracks {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

// apply puts a layer on top in every track, a blob that the cache knows, or
// one that is built. What is built is built in one go, of one download.
func (j *job) apply(ctx context.Context, l convert.Layer) (convert.Pack[[]convert.Packed], error) {
	steps := make([]*step, len(j.tracks))
	var readers []reader
	for i, t := range j.tracks {
		s, err := t.begin(ctx, l)
		if err != nil {
			return nil, err
		}
		steps[i] = s
		readers = append(readers, s.readers()...)
	}
	if len(readers) > 0 {
		err := j.unpack(ctx, l, func(r io.Reader) error { return fan(ctx, r, readers) })
		if err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) ([]convert.Packed, error) { return packAll(ctx, steps) }, nil
}

// packAll returns the layer of every track.
func packAll(ctx context.Context, steps []*step) (_ []convert.Packed, err error) {
	packed := make([]convert.Packed, len(steps))
	for i, s := range steps {
		if packed[i], err = s.pack(ctx); err != nil {
			return nil, err
		}
	}
	return packed, nil
}

// unpack downloads a layer for apply, and starts on the download of the next
// if that is sure to be needed.
func (j *job) unpack(ctx context.Context, l convert.Layer, apply func(io.Reader) error) error {
	d := j.next
	if d == nil {
		d = j.download(ctx, l)
	}
	defer d.close()
	j.next = nil
	if n := l.Index + 1; n < len(j.img.Layers) && j.missed() {
		j.next = j.download(ctx, j.img.Layers[n])
	}
	return apply(d)
}

// missed reports whether any track builds all further layers.
func (j *job) missed() bool {
	for _, t := range j.tracks {
		if t.missed {
			return true
		}
	}
	return false
}

func (j *job) download(ctx context.Context, l convert.Layer) *download {
	return newDownload(ctx, j.src, l.Source, func(done int64) {
		for _, t := range j.tracks {
			if t.missed {
				t.report(Event{Layer: l, Stage: Applying, Done: done, Total: l.Source.Size})
			}
		}
	})
}

func (p *Pipeline) report(e Event) {
	if p.opts.Report != nil {
		p.opts.Report(e)
	}
}
