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
	Target       string        `json:"target,omitempty"`
	Digest       digest.Digest `json:"digest"`
	MediaType    string        `json:"mediaType"`
	SourceSize   int64         `json:"sourceSize"` // of the layers
	Size         int64         `json:"size"`       // of the new layers
	Ratio        float64       `json:"ratio"`
	Seconds      float64       `json:"seconds"`
	Layers       []layer       `json:"layers"`
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

// A total gathers what a summary needs.
type total struct {
	start time.Time

	mu     sync.Mutex // guards layers and read
	layers []layer
	read   map[bar]int64 // bytes of each source layer
}

func newTotal() *total { return &total{start: time.Now(), read: map[bar]int64{}} }

func (t *total) add(e pipeline.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.read[barOf(e.Layer)] = e.Layer.Source.Size
	if e.Stage != pipeline.Finished && e.Stage != pipeline.Reused {
		return
	}
	t.layers = append(t.layers, layer{
		Platform: platforms.Format(e.Layer.Platform), Index: e.Layer.Index,
		Source: e.Layer.Source.Digest, SourceSize: e.Layer.Source.Size,
		Digest: e.Blob.Digest, Size: e.Blob.Size, Reused: e.Stage == pipeline.Reused,
	})
}

func (t *total) summary(s *settings, source, made ocispec.Descriptor) summary {
	r := summary{
		Source: s.from.String(), SourceDigest: source.Digest, Digest: made.Digest, MediaType: made.MediaType,
		Seconds: math.Round(time.Since(t.start).Seconds()*1000) / 1000, Layers: t.layers,
	}
	if !s.noUpload {
		r.Target = s.to.String()
	}
	for _, n := range t.read {
		r.SourceSize += n
	}
	for _, l := range t.layers {
		r.Size += l.Size
	}
	if r.SourceSize > 0 {
		r.Ratio = math.Round(float64(r.Size)/float64(r.SourceSize)*1000) / 1000
	}
	slices.SortFunc(r.Layers, func(a, b layer) int {
		return cmp.Or(cmp.Compare(a.Platform, b.Platform), cmp.Compare(a.Index, b.Index))
	})
	return r
}

// print writes the summary.
func (t *total) print(w io.Writer, s *settings, source, made ocispec.Descriptor) error {
	r := t.summary(s, source, made)
	if s.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	where := r.Target
	if where == "" {
		where = "(nothing uploaded)"
	}
	_, err := fmt.Fprintf(w, "%s@%s\n%s in %.1f s\n", where, r.Digest, r.work(), r.Seconds)
	return err
}

// work says for people what there was to do.
func (r summary) work() string {
	if len(r.Layers) == 0 {
		return "converted before, found again"
	}
	reused := 0
	for _, l := range r.Layers {
		if l.Reused {
			reused++
		}
	}
	return fmt.Sprintf("%d layers, %d reused; %s to %s (%.2f)", len(r.Layers), reused, size(r.SourceSize), size(r.Size), r.Ratio)
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
