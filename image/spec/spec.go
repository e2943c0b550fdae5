// SPDX-License-Identifier: Apache-2.0

// Package spec reads and writes config.v1.json, the desired state of one block
// device: which layers make up the disk, bottom first, and where writes go.
//
// The schema is the reference implementation's, so that either's daemon can
// serve a directory the other's snapshotter wrote. Keys of ours that the
// reference does not know ([Lower.RepoBlobURL], [Upper.Sparse]) are optional
// and ignored by it; it cannot serve layers with [Lower.TurboMeta]. The file is written before the device exists and is the
// only state from which a restarted daemon rebuilds it.
package spec

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
)

// MaxLowers is how many read-only layers one volume may stack: the format's
// limit on the layers of a merged index.
const MaxLowers = 255

// maxSize bounds a spec file in bytes: 255 lowers of six paths of 4 KiB each.
const maxSize = 8 << 20

// A Volume is the content of one config.v1.json.
type Volume struct {
	// RepoBlobURL is "https://host/v2/<repo>/blobs"; a lower's digest is
	// appended to it. Needed only if some lower is remote.
	RepoBlobURL string `json:"repoBlobUrl"`

	Lowers []Lower `json:"lowers"` // bottom first
	Upper  Upper   `json:"upper"`

	// ResultFile is where the block daemon reports the outcome of opening the
	// volume: "success" or "failed:<why>".
	ResultFile string `json:"resultFile"`

	// AccelerationLayer says that the last lower holds a trace, not blocks.
	AccelerationLayer bool   `json:"accelerationLayer,omitempty"`
	RecordTracePath   string `json:"recordTracePath,omitempty"`
}

// A Lower is one read-only layer. A local File wins over what Dir holds, which
// wins over the remote Digest.
type Lower struct {
	File   string        `json:"file,omitempty"`
	Dir    string        `json:"dir,omitempty"`
	Digest digest.Digest `json:"digest,omitempty"`
	Size   int64         `json:"size,omitempty"` // bytes of the blob; 0 if unknown

	// RepoBlobURL overrides the volume's, for a stack whose layers come from
	// several repositories.
	RepoBlobURL string `json:"repoBlobUrl,omitempty"`

	// TargetFile, TargetDigest and GzipIndex belong to TurboOCI layers, the
	// content of whose files lies in the original OCI layer: its target. A
	// local TargetFile wins over the remote TargetDigest. Of a compressed one
	// GzipIndex is the index, whichever kind of compression it is.
	TargetFile   string        `json:"targetFile,omitempty"`
	TargetDigest digest.Digest `json:"targetDigest,omitempty"`
	GzipIndex    string        `json:"gzipIndex,omitempty"`

	// TurboMeta says that Digest is the blob of a TurboOCI layer as registries
	// have it, whose files are to be unpacked into Dir: the layer is the file of
	// the first of these names that all such lowers have. Beside it is the
	// index: GzipIndex, if it is given, or any.
	TurboMeta []string `json:"turboMeta,omitempty"`
}

// An Upper is the writable layer; its zero value means a read-only volume.
type Upper struct {
	Index     string `json:"index,omitempty"`
	Data      string `json:"data,omitempty"`
	Target    string `json:"target,omitempty"`
	GzipIndex string `json:"gzipIndex,omitempty"`

	// VSizeGB is the capacity in GiB of a layer yet to be created; 0 takes the
	// capacity of the lowers.
	VSizeGB int `json:"vsize,omitempty"`

	// Sparse selects the sparse form of a layer yet to be created.
	Sparse bool `json:"sparse,omitempty"`
}

// Writable reports whether the volume has a writable layer.
func (v *Volume) Writable() bool { return v.Upper.Data != "" }

// BlobURL returns the location of remote lower l.
func (v *Volume) BlobURL(l Lower) string { return v.repo(l) + "/" + l.Digest.String() }

// TargetURL returns the location of the remote target of l.
func (v *Volume) TargetURL(l Lower) string { return v.repo(l) + "/" + l.TargetDigest.String() }

// repo returns where the remote blobs of l are.
func (v *Volume) repo(l Lower) string { return cmp.Or(l.RepoBlobURL, v.RepoBlobURL) }

// Load reads and validates the spec file at path.
func Load(path string) (*Volume, error) {
	v, err := load(path)
	if err != nil {
		return nil, fmt.Errorf("read volume spec %s: %w", path, err)
	}
	return v, nil
}

func load(path string) (*Volume, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	return Parse(text)
}

// Parse decodes and validates the text of a spec file. Unknown keys are
// ignored.
func Parse(text []byte) (*Volume, error) {
	if len(text) > maxSize {
		return nil, fmt.Errorf("larger than %d bytes", maxSize)
	}
	var v Volume
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, err
	}
	if err := v.Validate(); err != nil {
		return nil, err
	}
	return &v, nil
}

// Validate reports everything that would keep the volume from being opened.
func (v *Volume) Validate() error {
	var errs []error
	if len(v.Lowers) > MaxLowers {
		errs = append(errs, fmt.Errorf("%d lowers, at most %d can be stacked", len(v.Lowers), MaxLowers))
	}
	for i, l := range v.Lowers {
		if err := v.validateLower(l); err != nil {
			errs = append(errs, fmt.Errorf("lowers[%d]: %w", i, err))
		}
	}
	if (v.Upper.Data == "") != (v.Upper.Index == "") {
		errs = append(errs, errors.New("upper: data and index must be given together"))
	}
	if v.Upper.VSizeGB < 0 {
		errs = append(errs, fmt.Errorf("upper: vsize %d is negative", v.Upper.VSizeGB))
	}
	if len(v.Lowers) == 0 && !v.Writable() {
		errs = append(errs, errors.New("no lowers and no upper"))
	}
	return errors.Join(errs...)
}

func (v *Volume) validateLower(l Lower) error {
	for _, d := range []digest.Digest{l.Digest, l.TargetDigest} {
		if d == "" {
			continue
		}
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("%q is not a sha256 digest", string(d))
		}
	}
	switch {
	case l.Size < 0:
		return fmt.Errorf("size %d is negative", l.Size)
	case l.File == "" && l.Dir == "" && l.Digest == "":
		return errors.New("neither file, dir nor digest")
	case l.File == "" && l.Dir == "" && v.repo(l) == "":
		return fmt.Errorf("layer %s is remote but repoBlobUrl is empty", l.Digest)
	case l.GzipIndex != "" && l.TargetFile == "" && l.TargetDigest == "":
		return fmt.Errorf("gzipIndex %s without targetFile or targetDigest", l.GzipIndex)
	case len(l.TurboMeta) > 0 && (l.Digest == "" || l.Size == 0 || l.Dir == "" || l.File != "" || v.repo(l) == ""):
		return errors.New("turboMeta without a digest and its size, a repoBlobUrl and a dir, or with a file")
	case slices.ContainsFunc(l.TurboMeta, func(name string) bool { return !filepath.IsLocal(name) || name != filepath.Base(name) }):
		return fmt.Errorf("turboMeta %q are not file names", l.TurboMeta)
	case l.TargetDigest != "" && l.TargetFile == "" && v.repo(l) == "":
		return fmt.Errorf("target %s is remote but repoBlobUrl is empty", l.TargetDigest)
	}
	return nil
}

// Save writes v to path so that a crash leaves either the old file or the new
// one: a temporary file beside it, synced, renamed over it, directory synced.
func (v *Volume) Save(path string) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write volume spec %s: %w", path, err)
	}
	if err := replace(path, text); err != nil {
		return fmt.Errorf("write volume spec %s: %w", path, err)
	}
	return nil
}

func replace(path string, text []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone already once renamed
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
