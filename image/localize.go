// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/image/turbo"
)

// maxPacked bounds the blob of a TurboOCI layer, in bytes: the metadata of
// millions of files.
const maxPacked = 256 << 20

// Localize returns v with those TurboOCI layers unpacked whose blobs are still
// in the registry, each into its directory, where it stays, and opened from
// there. Open does so by itself.
func Localize(ctx context.Context, v *spec.Volume, blobs fetcher.Opener) (*spec.Volume, error) {
	if !slices.ContainsFunc(v.Lowers, isPacked) {
		return v, nil
	}
	local := *v
	local.Lowers = slices.Clone(v.Lowers)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelOpens)
	for i, l := range local.Lowers {
		if !isPacked(l) {
			continue
		}
		g.Go(func() error {
			if err := bring(gctx, v, l, blobs); err != nil {
				return fmt.Errorf("lowers[%d]: metadata %s: %w", i, l.Digest, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return &local, nameFiles(local.Lowers)
}

// maxAsked bounds what of a blob is asked for before it is read, in bytes.
const maxAsked = 16 << 20

// AskWhole has all of blob fetched, if it can be asked for that and is not
// huge. It does not wait.
func AskWhole(ctx context.Context, blob fetcher.Blob) error {
	return ask(ctx, blob, 0, min(blob.Size(), maxAsked))
}

func isPacked(l spec.Lower) bool { return len(l.TurboMeta) > 0 }

// bring sees to it that the files of l are in its directory.
func bring(ctx context.Context, v *spec.Volume, l spec.Lower, blobs fetcher.Opener) error {
	if slices.ContainsFunc(l.TurboMeta, func(name string) bool { return hasFile(l, name) }) {
		return nil
	}
	if l.Size > maxPacked {
		return fmt.Errorf("it has %d bytes, more than %d", l.Size, maxPacked)
	}
	ref := fetcher.Ref{URL: v.BlobURL(l), Digest: l.Digest, Size: l.Size}
	again, err := tryBring(ctx, ref, l, blobs)
	if again {
		_, err = tryBring(ctx, ref, l, blobs)
	}
	return err
}

// tryBring fetches and unpacks the blob of ref. After an error it reports
// whether copies of the blob were dropped that may have been damaged.
func tryBring(ctx context.Context, ref fetcher.Ref, l spec.Lower, blobs fetcher.Opener) (again bool, err error) {
	dir, err := os.MkdirTemp(l.Dir, ".unpack-")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if again, err = fetchFiles(ctx, ref, blobs, dir); err != nil {
		return again, err
	}
	return false, moveFiles(dir, l)
}

func hasFile(l spec.Lower, name string) bool {
	info, err := os.Lstat(filepath.Join(l.Dir, name))
	return err == nil && info.Mode().IsRegular()
}

// fetchFiles unpacks the blob of ref into the empty directory dir.
func fetchFiles(ctx context.Context, ref fetcher.Ref, blobs fetcher.Opener, dir string) (dropped bool, err error) {
	b, err := blobs.Open(ctx, ref)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if b.Size() != ref.Size {
		return false, fmt.Errorf("the blob has %d bytes, its layer says %d", b.Size(), ref.Size)
	}
	if err := AskWhole(ctx, b); err != nil {
		return false, err
	}
	if err = turbo.Unpack(fetcher.AtContext(ctx, b), ref.Digest, ref.Size, dir); err == nil || ctx.Err() != nil {
		return false, err
	}
	return fetcher.Drop(ctx, b, 0, ref.Size) == nil, err
}

// moveFiles moves the files of l from dir to where they belong, the metadata,
// by which they count as there, at the end.
func moveFiles(dir string, l spec.Lower) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var found []string
	for _, e := range entries {
		if !slices.Contains(l.TurboMeta, e.Name()) {
			found = append(found, e.Name())
		}
	}
	others := len(found)
	for _, name := range l.TurboMeta {
		if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == name }) {
			found = append(found, name)
		}
	}
	if len(found) == others {
		return fmt.Errorf("it holds none of %q", l.TurboMeta)
	}
	for _, name := range found {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(l.Dir, name)); err != nil {
			return err
		}
	}
	return syncDir(l.Dir)
}

// nameFiles has the packed layers of all opened from their files. A layer is an
// edit of what lies below it: all are of the same file system.
func nameFiles(all []spec.Lower) error {
	packed := slices.DeleteFunc(slices.Clone(all), func(l spec.Lower) bool { return !isPacked(l) })
	choice := packed[0].TurboMeta
	meta := slices.IndexFunc(choice, func(name string) bool {
		return !slices.ContainsFunc(packed, func(l spec.Lower) bool { return !hasFile(l, name) })
	})
	if meta < 0 {
		return fmt.Errorf("TurboOCI layers have none of %q in common", choice)
	}
	for i := range all {
		l := &all[i]
		if !isPacked(*l) {
			continue
		}
		index, err := indexOf(*l)
		if err != nil {
			return fmt.Errorf("lowers[%d]: %w", i, err)
		}
		l.File, l.GzipIndex = filepath.Join(l.Dir, choice[meta]), index
	}
	return nil
}

// indexOf returns the index of the target of l, and nothing where that is not
// compressed. What the layer's annotations say of that may be wrong, but not
// that it is.
func indexOf(l spec.Lower) (path string, err error) {
	for _, name := range []string{filepath.Base(l.GzipIndex), turbo.GzipIndex, turbo.ZstdIndex} {
		if hasFile(l, name) {
			return filepath.Join(l.Dir, name), nil
		}
	}
	if l.GzipIndex != "" {
		return "", fmt.Errorf("metadata %s hold no index of the target %s, which is compressed", l.Digest, l.TargetDigest)
	}
	return "", nil
}
