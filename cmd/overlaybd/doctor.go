// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/overlaybd-go/overlaybd/cmd/internal/exporter"
)

// A facility is something of the machine that the system can use.
type facility struct {
	Name      string `json:"name"`
	Purpose   string `json:"purpose"`
	Available bool   `json:"available"`
	Detail    string `json:"detail"` // how it was found, or what to do to get it
}

// A diagnosis is what doctor reports.
type diagnosis struct {
	Kernel     string     `json:"kernel"`
	Facilities []facility `json:"facilities"`

	// Exporter is the one that exporter = "auto" would choose; empty if none.
	Exporter string `json:"exporter"`
	Reason   string `json:"reason"`
}

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show what this machine offers and which exporter would be chosen",
		Long: `Show what this machine offers for running images from block devices, what is
missing and how to get it, and which exporter the setting "auto" would choose.

Exit code 0: containers can be run. 1: something necessary is missing.`,
		Example: "  overlaybd doctor\n  overlaybd doctor --json | jq .exporter",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := diagnose(machine{root: "/"}, exporter.Kinds())
			if err := d.print(cmd.OutOrStdout(), asJSON); err != nil {
				return err
			}
			return d.verdict()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// verdict fails when no container could be run.
func (d diagnosis) verdict() error {
	if d.Exporter == "" {
		return errors.New(d.Reason)
	}
	for _, f := range d.Facilities {
		if f.Name == "overlay" && !f.Available {
			return errors.New("no container can be run: overlay is " + f.Detail)
		}
	}
	return nil
}

func (d diagnosis) print(w io.Writer, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(d)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "kernel\t%s\n\nFACILITY\tAVAILABLE\tUSED FOR\tDETAIL\n", d.Kernel)
	for _, f := range d.Facilities {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", f.Name, yesNo(f.Available), f.Purpose, f.Detail)
	}
	fmt.Fprintf(tw, "\nexporter\t%s\n\t%s\n", orNone(d.Exporter), d.Reason)
	return tw.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// A machine is looked at through its file tree, so that a test can show
// doctor another one. Whether an exporter can work, the exporter itself tells.
type machine struct{ root string }

func diagnose(m machine, kinds []exporter.Kind) diagnosis {
	d := diagnosis{Kernel: m.kernel()}
	for _, k := range kinds {
		f := facility{Name: k.Name, Purpose: k.Purpose, Available: true}
		if err := k.Available(); err != nil {
			f.Available, f.Detail = false, err.Error()
		}
		d.Facilities = append(d.Facilities, f)
	}
	d.Facilities = append(d.Facilities,
		m.fileSystem("overlay", "containers' root file systems"),
		m.fileSystem("ext4", "images with ext4, the usual case"),
		m.fileSystem("erofs", "images with EROFS"),
	)
	c, err := exporter.Choose(kinds, "auto")
	d.Exporter, d.Reason = c.Name, c.Reason()
	if err != nil {
		d.Reason = err.Error()
	}
	return d
}

func (m machine) kernel() string {
	b, err := os.ReadFile(m.root + "proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// fileSystem looks a file system type up in what the kernel has loaded.
func (m machine) fileSystem(name, purpose string) facility {
	f, err := os.Open(m.root + "proc/filesystems")
	if err != nil {
		return facility{name, purpose, false, err.Error()}
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.TrimSpace(strings.TrimPrefix(s.Text(), "nodev")) == name {
			return facility{name, purpose, true, "/proc/filesystems"}
		}
	}
	return facility{name, purpose, false, "not in /proc/filesystems: modprobe " + name}
}
