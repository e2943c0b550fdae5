// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// A Kind is a kind of place where images lie.
type Kind string

// The kinds of places, as references name them. A reference without one is
// that of a registry.
const (
	Registry      Kind = "docker"         // docker://HOST/REPOSITORY:TAG
	Layout        Kind = "oci"            // oci:DIR[:TAG]
	OCIArchive    Kind = "oci-archive"    // oci-archive:FILE[:TAG]
	DockerArchive Kind = "docker-archive" // docker-archive:FILE[:NAME]
)

// A Ref names an image.
type Ref struct {
	Kind Kind

	// Location is the directory, the file, or host/repository.
	Location string

	// Name is a tag, a digest, or in archives whatever was written there. It
	// is empty for the only image of a layout or archive.
	Name string
}

// String returns the reference in the form that ParseRef takes.
func (r Ref) String() string {
	sep := ":"
	if r.Name == "" {
		sep = ""
	} else if _, err := digest.Parse(r.Name); err == nil {
		sep = "@"
	}
	if r.Kind == Registry {
		return r.Location + sep + r.Name
	}
	return string(r.Kind) + ":" + r.Location + sep + r.Name
}

// Host returns the registry's host and port, empty for other kinds.
func (r Ref) Host() string {
	if r.Kind != Registry {
		return ""
	}
	host, _, _ := strings.Cut(r.Location, "/")
	return host
}

// ParseRef parses a reference. Those of registries are completed as docker
// does it: ubuntu is docker.io/library/ubuntu:latest.
func ParseRef(s string) (Ref, error) {
	kind, rest, ok := strings.Cut(s, ":")
	switch k := Kind(kind); {
	case ok && (k == Layout || k == OCIArchive || k == DockerArchive):
		return parsePath(k, s, rest)
	case ok && k == Registry && strings.HasPrefix(rest, "//"):
		s = rest[2:]
	}
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Ref{}, fmt.Errorf("image %q: %w", s, err)
	}
	r := Ref{Kind: Registry, Location: named.Name()}
	switch n := named.(type) {
	case reference.Digested:
		r.Name = n.Digest().String()
	case reference.Tagged:
		r.Name = n.Tag()
	}
	return r, nil
}

// parsePath parses PATH, PATH:NAME or PATH@DIGEST. A path has no colon.
func parsePath(kind Kind, whole, rest string) (Ref, error) {
	r := Ref{Kind: kind}
	r.Location, r.Name, _ = strings.Cut(rest, ":")
	if path, algorithm, ok := cutLast(r.Location, "@"); ok {
		if d, err := digest.Parse(algorithm + ":" + r.Name); err == nil {
			r.Location, r.Name = path, d.String()
		}
	}
	switch {
	case r.Location == "":
		return Ref{}, fmt.Errorf("image %q: it has no path", whole)
	case strings.ContainsRune(whole, 0):
		return Ref{}, fmt.Errorf("image %q: a path has no zero byte", whole)
	}
	return r, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
