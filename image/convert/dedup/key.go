// SPDX-License-Identifier: Apache-2.0

package dedup

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/opencontainers/go-digest"
)

// maxColumn is the length of a text column, in characters.
const maxColumn = 255

// A Tag says what, besides the source, determines the bytes of a result. The
// zero value is no tag.
type Tag string

// Reference is the tag of rows written by the reference implementation. The
// package comment tells what to observe.
const Reference Tag = "reference"

// NewTag returns the tag of a convertor. The generation changes whenever the
// convertor makes other bytes of the same input; options are all the settings
// that do, by name.
func NewTag(generation int, options map[string]string) Tag {
	var text []byte
	for _, name := range slices.Sorted(maps.Keys(options)) {
		text = fmt.Appendf(text, "%q=%q\n", name, options[name]) // durable: rows are found by it
	}
	sum := sha256.Sum256(text)
	return Tag(fmt.Sprintf("overlaybd-go=%d-%x", generation, sum[:16]))
}

// append returns the identifier s with the tag.
func (t Tag) append(s string) string {
	if t == Reference {
		return s
	}
	return s + ";" + string(t)
}

// A LayerKey is what a converted layer is found by.
type LayerKey struct {
	Host    string        // of the registry, in lower case, with the port if there is one
	Repo    string        // path of the repository
	ChainID digest.Digest // of the source layer and all below it
	Tag     Tag
}

// A ManifestKey is what a converted manifest or index is found by.
type ManifestKey struct {
	Host      string
	Repo      string
	Source    digest.Digest // of the source manifest
	MediaType string        // of the converted manifest
	Tag       Tag
}

// A key is a LayerKey or a ManifestKey.
type key interface {
	// args returns host, identifiers and repository, as the columns hold them.
	args() ([]any, error)
	repo() string
	fmt.Stringer
}

// String describes the key for messages.
func (k LayerKey) String() string {
	return fmt.Sprintf("layer %s of %s/%s", k.ChainID, k.Host, k.Repo)
}

func (k LayerKey) repo() string { return k.Repo }

func (k LayerKey) args() ([]any, error) {
	err := errors.Join(validPlace(k.Host, k.Repo, k.Tag), validDigest(k.ChainID))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", k, err)
	}
	return columns(k.Host, k.Tag.append(k.ChainID.String()), k.Repo)
}

// String describes the key for messages.
func (k ManifestKey) String() string {
	return fmt.Sprintf("manifest %s of %s/%s", k.Source, k.Host, k.Repo)
}

func (k ManifestKey) repo() string { return k.Repo }

func (k ManifestKey) args() ([]any, error) {
	err := errors.Join(validPlace(k.Host, k.Repo, k.Tag), validDigest(k.Source))
	if !mediaType.MatchString(k.MediaType) {
		err = errors.Join(err, fmt.Errorf("invalid media type %q", k.MediaType))
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w", k, err)
	}
	return columns(k.Host, k.Source.String(), k.Tag.append(k.MediaType), k.Repo)
}

// columns returns the values if they fit.
func columns(values ...string) ([]any, error) {
	args := make([]any, len(values))
	for i, v := range values {
		if len(v) > maxColumn {
			return nil, fmt.Errorf("%q is longer than %d characters", v, maxColumn)
		}
		args[i] = v
	}
	return args, nil
}

// MySQL compares the columns without regard to case, accents and blanks at the
// end, SQLite does not. What these expressions let through both tell apart
// alike.
var (
	host      = regexp.MustCompile(`^[a-z0-9._:\[\]-]+$`)
	repo      = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	mediaType = regexp.MustCompile(`^[a-z0-9./+_-]+$`)
	tag       = regexp.MustCompile(`^[a-z0-9=._-]+$`)
)

// validPlace checks what layers and manifests have in common.
func validPlace(h, r string, t Tag) error {
	switch {
	case !host.MatchString(h):
		return fmt.Errorf("invalid host %q", h)
	case !validRepo(r):
		return fmt.Errorf("invalid repository %q", r)
	case !tag.MatchString(string(t)):
		return fmt.Errorf("invalid tag %q", t)
	}
	return nil
}

func validRepo(r string) bool {
	return len(r) <= maxColumn && repo.MatchString(r)
}

func validDigest(d digest.Digest) error {
	if len(d) > maxColumn {
		return fmt.Errorf("digest of %d characters", len(d))
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", string(d), err)
	}
	return nil
}
