// SPDX-License-Identifier: Apache-2.0

package download

import (
	"context"
	"net/url"
	"path/filepath"
	"sync"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// fileName is what a downloaded layer is called in its directory: durable, and
// the reference's.
const fileName = "overlaybd.commit"

// A Volume opens the layers of one volume.
type Volume struct {
	d    *Downloader
	spec *spec.Volume
	next fetcher.Opener

	mu    sync.Mutex // guards what follows
	blobs []*Blob
	fixed int64 // bytes of remote blobs that have no place on the node
}

var _ fetcher.Opener = (*Volume)(nil)

// Volume returns an Opener of the layers of v, which opens them, and again
// after damage, with next. Each is downloaded while it is open, if the spec
// says where to.
func (d *Downloader) Volume(v *spec.Volume, next fetcher.Opener) *Volume {
	return &Volume{d: d, spec: v, next: next}
}

// Open opens ref with the next Opener.
func (v *Volume) Open(ctx context.Context, ref fetcher.Ref) (fetcher.Blob, error) {
	b, err := v.next.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	l, local, ok := v.lower(ref, b.Size())
	switch {
	case !ok && ref.Digest != "":
		v.mu.Lock()
		defer v.mu.Unlock()
		v.fixed += b.Size()
		return b, nil
	case !ok:
		return b, nil
	}
	far := fetcher.Ref{URL: v.spec.BlobURL(l), Digest: l.Digest, Size: b.Size()}
	return v.keep(v.d.add(v, far, l.Dir, &source{b, local})), nil
}

// lower returns the lower of the spec that ref, whose blob has size bytes, was
// made of, if it has both a remote blob and a place for it: that blob, or the
// file in that place. A file of another size is something else: containerd
// takes the tar off what it downloads.
func (v *Volume) lower(ref fetcher.Ref, size int64) (l spec.Lower, local, ok bool) {
	for _, l := range v.spec.Lowers {
		switch {
		case len(l.TurboMeta) > 0: // its blob is unpacked when it is opened
		case !filepath.IsAbs(l.Dir) || l.Digest == "" || l.RepoBlobURL == "" && v.spec.RepoBlobURL == "":
		case ref.Digest == l.Digest:
			return l, false, true
		case ref.URL == fileURL(filepath.Join(l.Dir, fileName)) && size == l.Size:
			return l, true, true
		}
	}
	return spec.Lower{}, false, false
}

func fileURL(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }

func (v *Volume) keep(b *Blob) *Blob {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.blobs = append(v.blobs, b)
	return b
}

// Progress returns how many bytes the layers have that were opened, those that
// never were remote aside, and how many of them are on the node for good.
func (v *Volume) Progress() (local, total int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	total = v.fixed
	for _, b := range v.blobs {
		total += b.Size()
		local += b.local()
	}
	return local, total
}
