// SPDX-License-Identifier: Apache-2.0

package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend/ublk/internal/driver"
)

const (
	// maxNumber is one more than the driver allows: minor numbers have 20 bits.
	maxNumber = 1 << 20

	// patience is for how long a device that nobody can use may take to go.
	patience = 10 * time.Second
)

// enroll writes a record of a device that is about to be made, under a number
// that seems to be free, from the given one on.
func (e *Exporter) enroll(id string, from uint32) (record, error) {
	number, err := e.takeNumber(from)
	if err != nil {
		return record{}, err
	}
	r := record{number: number, tag: 1 + rand.Uint64N(1<<64-1), id: id}
	if err := e.records.put(r); err != nil {
		return record{}, errors.Join(err, e.strike(r))
	}
	return r, nil
}

func (e *Exporter) takeNumber(from uint32) (uint32, error) {
	for n := from; n < maxNumber; n++ {
		if _, err := os.Lstat(driver.CharPath(n)); err == nil {
			continue // ours or somebody else's
		}
		if e.take(n) {
			return n, nil
		}
	}
	return 0, errors.New("no number is free")
}

func (e *Exporter) take(number uint32) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.numbers[number] {
		return false
	}
	e.numbers[number] = true
	return true
}

// strike removes the record of a device that does not exist.
func (e *Exporter) strike(r record) error {
	if err := e.records.remove(r.number); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.numbers, r.number)
	delete(e.left, r.number)
	return nil
}

// leave leaves a device, or what there is of it, to who asks for what is left.
func (e *Exporter) leave(r record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left[r.number] = r.id
}

// findLeft notes the devices that records tell of.
func (e *Exporter) findLeft() error {
	numbers, err := e.records.numbers()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, n := range numbers {
		r, err := e.records.get(n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if e.take(n) {
			r.number = n // Left tells what else is wrong with a damaged one
			e.leave(r)
		}
	}
	return nil
}

// leftNumber returns the number of the device id that nobody serves.
func (e *Exporter) leftNumber(id string) (number uint32, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for n, left := range e.left {
		if left == id {
			return n, true
		}
	}
	return 0, false
}

// ours reports whether the device of the record's number exists and is the one
// that the record is of.
func (e *Exporter) ours(ctx context.Context, r record) (bool, error) {
	i, err := e.control.Info(ctx, r.number)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil && i.Tag == r.tag, err
}

// clear removes a device that is not served and that nobody can have a use for.
func (e *Exporter) clear(ctx context.Context, r record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if err := e.control.Stop(ctx, r.number); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return e.delete(ctx, r)
}

// delete makes the kernel forget a device without a disk, and removes its
// record.
func (e *Exporter) delete(ctx context.Context, r record) error {
	ours, err := e.ours(ctx, r)
	if err != nil {
		return err
	}
	if ours {
		if err := e.control.Delete(ctx, r.number); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("%w: is %s open?", err, driver.BlockName(r.number))
		}
	}
	return e.strike(r)
}
