// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/overlaybd-go/overlaybd/image/lsmt"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// Seal freezes the writable layer u into a read-only layer file at dst and
// deletes its index file. Interrupted at any point it can be repeated: the
// data file is sealed in place first, and only then renamed.
func Seal(ctx context.Context, u spec.Upper, dst string) error {
	if err := sealInPlace(ctx, u); err != nil {
		if errors.Is(err, os.ErrNotExist) && exists(dst) {
			return removeIndex(u.Index) // renamed by an earlier call
		}
		return fmt.Errorf("seal writable layer %s: %w", u.Data, err)
	}
	if err := os.Rename(u.Data, dst); err != nil {
		return fmt.Errorf("seal writable layer: %w", err)
	}
	return errors.Join(syncDir(filepath.Dir(dst)), removeIndex(u.Index))
}

func removeIndex(index string) error {
	return errors.Join(removeIfThere(index), removeIfThere(lsmt.JournalPath(index)))
}

func sealInPlace(ctx context.Context, u spec.Upper) error {
	sealed, err := lsmt.IsSealed(u.Data)
	if err != nil || sealed {
		return err
	}
	w, err := lsmt.OpenWritable(u.Data, u.Index, lsmt.OpenOptions{})
	if err != nil {
		return err
	}
	return errors.Join(w.Seal(ctx), w.Close())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
