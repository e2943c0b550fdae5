// SPDX-License-Identifier: Apache-2.0

// Package exporter knows which ways of showing volumes to the kernel there
// are, and which of them a machine offers.
package exporter

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/overlaybd-go/overlaybd/backend/fuse"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
	"github.com/overlaybd-go/overlaybd/backend/ublk"
)

// A Kind is one way, with the name it has in the configuration.
type Kind struct {
	Name    string
	Purpose string

	// Available says what the machine lacks, and what to do about it, or nil.
	Available func() error
}

// Kinds returns what there is, best first: devices that outlive the process
// before those that do not.
func Kinds() []Kind {
	return []Kind{
		{"tcmu", "SCSI disks served from user space", tcmu.Available},
		{"ublk", "block devices through io_uring", ublk.Available},
		{"fuse", "files served from user space, on loop devices", fuse.Available},
	}
}

// A Choice is a kind, and why it is not a better one.
type Choice struct {
	Name   string
	Passed []Passed
}

// Passed is a kind that was not chosen, and why.
type Passed struct {
	Name string
	Why  error
}

// Reason returns the choice as a sentence.
func (c Choice) Reason() string {
	if len(c.Passed) == 0 {
		return c.Name + " can be used here"
	}
	var passed []string
	for _, p := range c.Passed {
		passed = append(passed, fmt.Sprintf("not %s: %v", p.Name, p.Why))
	}
	return strings.Join(passed, "; ")
}

// Choose returns the kind that the setting means: the one it names, which must
// be available, or for "auto" the first that is.
func Choose(kinds []Kind, setting string) (Choice, error) {
	if setting != "auto" {
		return named(kinds, setting)
	}
	var c Choice
	for _, k := range kinds {
		err := k.Available()
		if err == nil {
			c.Name = k.Name
			return c, nil
		}
		c.Passed = append(c.Passed, Passed{k.Name, err})
	}
	return c, errors.New("this machine offers no way to make block devices: " + c.Reason())
}

func named(kinds []Kind, name string) (Choice, error) {
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == name })
	if i < 0 {
		return Choice{}, fmt.Errorf("exporter %q does not exist", name)
	}
	if err := kinds[i].Available(); err != nil {
		return Choice{}, fmt.Errorf("exporter %q cannot work here: %w", name, err)
	}
	return Choice{Name: name}, nil
}
