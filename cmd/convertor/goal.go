// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"slices"

	"github.com/overlaybd-go/overlaybd/image/convert"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
)

// A goal is an image to be written.
type goal struct {
	format   convert.Format
	to       store.Ref // without a name if nothing but its referrer leads to it; zero if it goes nowhere
	referrer bool
}

// foreign reports whether the image will lie where the layers of from do not.
func (g *goal) foreign(from store.Ref) bool {
	return g.to.Kind != from.Kind || g.to.Location != from.Location
}

// hosts returns the registries that have to do with the conversion.
func (s *settings) hosts() (hosts []string) {
	for _, r := range append([]store.Ref{s.from}, s.targets()...) {
		if h := r.Host(); h != "" {
			hosts = append(hosts, h)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

func (s *settings) targets() (refs []store.Ref) {
	for _, g := range s.goals {
		refs = append(refs, g.to)
	}
	return refs
}

// readRefs finds the source and the targets.
func (s *settings) readRefs() (err error) {
	if s.repository != "" {
		if s.source != "" || s.target != "" || s.turboTarget != "" {
			return usage("-r is the short form of --source, --target and --turbo-target: give one of them")
		}
		if err := s.expand(); err != nil {
			return err
		}
	}
	if s.source == "" {
		return usage("name an image: --source and --target, or -r with -i and -o")
	}
	if s.from, err = store.ParseRef(s.source); err != nil {
		return usage("%w", err)
	}
	if s.turboOCI != "" && s.fastOCI != "" {
		return usage("--fastoci is the old name of --turboOCI: give one of them")
	}
	for _, f := range []struct {
		format      convert.Format
		target, tag string
	}{
		{convert.Native, s.target, cmp.Or(s.outOverlaybd, s.outTag)},
		{convert.Turbo, s.turboTarget, cmp.Or(s.turboOCI, s.fastOCI)},
	} {
		if err := s.addGoal(f.format, f.target, f.tag); err != nil {
			return err
		}
	}
	if err := s.addAttached(); err != nil {
		return err
	}
	return s.checkGoals()
}

// expand turns -r, -i and -g into --source.
func (s *settings) expand() error {
	switch {
	case s.inTag != "":
		s.source = "docker://" + s.repository + ":" + s.inTag
	case s.inDigest != "":
		s.source = "docker://" + s.repository + "@" + s.inDigest
	default:
		return usage("name the image to convert: -i TAG or -g DIGEST")
	}
	return nil
}

// addGoal adds the image of a format, which is named in full or by its tag
// alone, if it is named.
func (s *settings) addGoal(format convert.Format, target, tag string) (err error) {
	g := goal{format: format, referrer: s.referrer}
	switch {
	case target != "" && tag != "":
		return usage("the %s image is named twice: %s and %s", format, target, tag)
	case target != "":
		g.to, err = store.ParseRef(target)
	case tag == "":
		return nil
	case s.from.Kind == store.Registry:
		g.to, err = store.ParseRef("docker://" + s.from.Location + ":" + tag)
	case s.from.Kind == store.Layout:
		g.to = store.Ref{Kind: store.Layout, Location: s.from.Location, Name: tag}
	default:
		return usage("%s cannot take another image %q: name it in full", s.from, tag)
	}
	if err != nil {
		return usage("%w", err)
	}
	s.goals = append(s.goals, g)
	return nil
}

// addAttached adds the turbo image of --attach.
func (s *settings) addAttached() error {
	if !s.attach {
		return nil
	}
	for _, g := range s.goals {
		if g.format == convert.Turbo {
			return usage("--attach writes a turbo image without a name, but %s is one", g.to)
		}
	}
	if s.from.Kind != store.Registry {
		return usage("--attach: %s is in no registry, which could list referrers", s.from)
	}
	to := s.from
	to.Name = ""
	s.goals = append(s.goals, goal{format: convert.Turbo, to: to, referrer: true})
	return nil
}

func (s *settings) checkGoals() error {
	if len(s.goals) == 0 && s.noUpload {
		s.goals = []goal{{format: convert.Native, referrer: s.referrer}}
	}
	if len(s.goals) == 0 {
		return usage("name the image to write: --target or --turbo-target, -o or --turboOCI, or --attach")
	}
	for i, g := range s.goals {
		switch {
		case g.to == s.from:
			return usage("the target is the source: %s", g.to)
		case g.to.Kind == store.DockerArchive:
			return usage("a docker-archive cannot be written: it has no place for the annotations of block layers; use oci-archive")
		}
		for _, other := range s.goals[:i] {
			if g.to == other.to && g.to.Name != "" || g.to.Kind == store.OCIArchive && g.to.Location == other.to.Location {
				return usage("both images would be %s", g.to)
			}
		}
	}
	return nil
}

// readFormat checks what layers are to be like.
func (s *settings) readFormat() error {
	if s.fsType != "ext4" && s.fsType != "erofs" {
		return usage("--fstype %q: want ext4 or erofs", s.fsType)
	}
	if s.fsType != "ext4" && !s.mkfs {
		return usage("--mkfs=false: the file system of base layers is ext4, not %s", s.fsType)
	}
	for _, g := range s.goals {
		if g.format == convert.Turbo && s.flatten {
			return usage("--flatten: the layers of a turbo image map into one layer of the source each, and cannot be merged")
		}
	}
	return nil
}
