// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A moduleTree is lib/modules/<release> of a kernel package that was unpacked
// but not installed, so that nothing has made a modules.dep for it: what a
// module depends on is read from the module itself.
type moduleTree struct {
	files   map[string]string // by name, with '_' for '-'
	builtin map[string]bool
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func openModules(dir string) (*moduleTree, error) {
	t := &moduleTree{files: make(map[string]string), builtin: make(map[string]bool)}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(list)) {
		t.builtin[moduleName(line)] = true
	}
	return t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			t.files[moduleName(name)] = name
		}
		return err
	})
}

// A module is the content of a module file, ready for the kernel.
type module struct {
	name string
	data []byte
}

// resolve returns the named modules after those they depend on. What is built
// into the kernel is left out.
func (t *moduleTree) resolve(ctx context.Context, names ...string) ([]module, error) {
	var all []module
	for _, name := range names {
		if err := t.add(ctx, &all, name); err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
	}
	return all, nil
}

func (t *moduleTree) add(ctx context.Context, all *[]module, name string) error {
	known := slices.ContainsFunc(*all, func(m module) bool { return m.name == name })
	file, ok := t.files[name]
	switch {
	case known || t.builtin[name]:
		return nil
	case !ok:
		return fs.ErrNotExist
	}
	data, err := readModule(ctx, file)
	if err != nil {
		return err
	}
	deps, err := dependencies(data)
	if err != nil {
		return err
	}
	for _, dep := range deps {
		if err := t.add(ctx, all, strings.ReplaceAll(dep, "-", "_")); err != nil {
			return fmt.Errorf("%s: %w", dep, err)
		}
	}
	*all = append(*all, module{name, data})
	return nil
}

func readModule(ctx context.Context, file string) ([]byte, error) {
	if filepath.Ext(file) == ".xz" {
		return exec.CommandContext(ctx, "xz", "-dc", file).Output()
	}
	return os.ReadFile(file)
}

// dependencies reads the entry "depends" of a module's .modinfo section.
func dependencies(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if deps, ok := strings.CutPrefix(entry, "depends="); ok {
			return strings.FieldsFunc(deps, func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}
