// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/image/convert/pipeline"
)

// A summary is the result of a conversion, as --json prints it. Sizes are in
// bytes.
type summary struct {
	Source       string        `json:"source"`
	SourceDigest digest.Digest `json:"sourceDigest"`
	SourceSize   int64         `json:"sourceSize"` // of the layers
	Seconds      float64       `json:"seconds"`
	Outputs      []result      `json:"outputs"`
}

// A result is one of the images that were written.
type result struct {
	Format    string        `json:"format"` // native or turbo
	FSType    string        `json:"fsType"`
	Target    string        `json:"target,omitempty"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`  // of the new layers
	Ratio     float64       `json:"ratio"` // to the source's
	Layers    []layer       `json:"layers"`

	// Originals are the source's layers that a turbo image needs and that had
	// to be brought to where it is.
	Originals *originals `json:"originals,omitempty"`
}

type layer struct {
	Platform   string        `json:"platform"`
	Index      int           `json:"index"`
	Source     digest.Digest `json:"source"`
	SourceSize int64         `json:"sourceSize"`
	Digest     digest.Digest `json:"digest"`
	Size       int64         `json:"size"`
	Reused     bool          `json:"reused"`
}

type originals struct {
	Copied  int   `json:"copied"`
	Mounted int   `json:"mounted"`
	Size    int64 `json:"size"` // of the copied
}

// A total gathers what a summary needs.
type total struct {
	*settings
	start  time.Time
	source ocispec.Descriptor

	mu      sync.Mutex // guards what follows
	results []result   // by goal
	read    map[bar]int64
}

func newTotal(s *settings) *total {
	return &total{settings: s, start: time.Now(), results: make([]result, len(s.goals)), read: map[bar]int64{}}
}

func (t *total) add(e pipeline.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.read[bar{chain: e.Layer.ChainID, platform: platforms.Format(e.Layer.Platform)}] = e.Layer.Source.Size
	r := &t.results[e.Output]
	switch e.Stage {
	case pipeline.Finished, pipeline.Reused:
		r.Layers = append(r.Layers, layer{
			Platform: platforms.Format(e.Layer.Platform), Index: e.Layer.Index,
			Source: e.Layer.Source.Digest, SourceSize: e.Layer.Source.Size,
			Digest: e.Blob.Digest, Size: e.Blob.Size, Reused: e.Stage == pipeline.Reused,
		})
	case pipeline.Copied, pipeline.Mounted:
		r.bring(e)
	case pipeline.Applying, pipeline.Packing, pipeline.Uploading:
	}
}

// bring counts a layer of the source that came to be where the image is.
func (r *result) bring(e pipeline.Event) {
	if r.Originals == nil {
		r.Originals = &originals{}
	}
	if e.Stage == pipeline.Mounted {
		r.Originals.Mounted++
		return
	}
	r.Originals.Copied++
	r.Originals.Size += e.Total
}

func (t *total) summary(made []ocispec.Descriptor) summary {
	s := summary{
		Source: t.from.String(), SourceDigest: t.source.Digest,
		Seconds: math.Round(time.Since(t.start).Seconds()*1000) / 1000, Outputs: t.results,
	}
	for _, n := range t.read {
		s.SourceSize += n
	}
	for i := range s.Outputs {
		r, g := &s.Outputs[i], &t.goals[i]
		r.Format, r.FSType, r.Digest, r.MediaType = g.format.String(), t.fsType, made[i].Digest, made[i].MediaType
		if !t.noUpload {
			r.Target = g.to.String()
		}
		r.complete(s.SourceSize)
	}
	return s
}

// complete adds up the layers.
func (r *result) complete(sourceSize int64) {
	for _, l := range r.Layers {
		r.Size += l.Size
	}
	if sourceSize > 0 {
		r.Ratio = math.Round(float64(r.Size)/float64(sourceSize)*1000) / 1000
	}
	slices.SortFunc(r.Layers, func(a, b layer) int {
		return cmp.Or(cmp.Compare(a.Platform, b.Platform), cmp.Compare(a.Index, b.Index))
	})
}

// print writes the summary.
func (t *total) print(w io.Writer, made []ocispec.Descriptor) error {
	s := t.summary(made)
	if t.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	for _, r := range s.Outputs {
		where := r.Target
		if where == "" {
			where = "(nothing uploaded)"
		}
		if _, err := fmt.Fprintf(w, "%s@%s\n%s %s: %s\n", where, r.Digest, r.Format, r.FSType, r.work(s.SourceSize)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "in %.1f s\n", s.Seconds)
	return err
}

// work says for people what there was to do.
func (r *result) work(sourceSize int64) string {
	if len(r.Layers) == 0 {
		return "converted before, found again"
	}
	reused := 0
	for _, l := range r.Layers {
		if l.Reused {
			reused++
		}
	}
	text := fmt.Sprintf("%d layers, %d reused; %s to %s (%.3g)", len(r.Layers), reused, size(sourceSize), size(r.Size), r.Ratio)
	if o := r.Originals; o != nil {
		text += fmt.Sprintf("; of the source's layers %d mounted, %d copied (%s)", o.Mounted, o.Copied, size(o.Size))
	}
	return text
}

// size returns n bytes for people.
func size(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.4g %s", f, units[i])
}
