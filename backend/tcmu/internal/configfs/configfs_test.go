// SPDX-License-Identifier: Apache-2.0

package configfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		tenant int
		id     string
		want   []string // the first is the reference's, where it has one
	}{
		{0, "7", []string{"naa.1990000000000007"}},
		{0, "1234567890123", []string{"naa.1991234567890123"}},
		{5, "7", []string{"naa.1050000000000007"}},
		{105, "7", []string{"naa.1050000000000007"}},
		{0, "12345678901234", nil},
		{0, "sha256-abc", nil},
		{0, strings.Repeat("x", MaxID), nil},
	} {
		got := wwns(Backstore{HBAOf(c.tenant), c.id})
		if !slices.Equal(got[:len(got)-1], c.want) {
			t.Errorf("names of %s of tenant %d: %q, want %q first", c.id, c.tenant, got, c.want)
		}
		if len(got[len(got)-1]) != len("naa.1990000000000007") {
			t.Errorf("name %q", got[len(got)-1])
		}
	}
	five, hundredFive := wwns(Backstore{5, "7"}), wwns(Backstore{105, "7"})
	if five[1] == hundredFive[1] {
		t.Errorf("two tenants have all names in common: %q", five)
	}
}

func TestParseName(t *testing.T) {
	for _, c := range []struct {
		name   string
		want   Backstore
		config string
		ok     bool
	}{
		{"tcm-user/999999999/dev_12/overlaybd//var/lib/12/config.v1.json", Backstore{defaultHBA, "12"}, "/var/lib/12/config.v1.json", true},
		{"tcm-user/5/dev_a_b/overlaybd/", Backstore{5, "a_b"}, "", true},
		{"tcm-user/5/dev_1/overlaybd/x;dev_1", Backstore{5, "1"}, "x;dev_1", true},
		{"tcm-user/5/dev_1/file//disk", Backstore{}, "", false},
		{"tcm-user/5/disk/overlaybd/x", Backstore{}, "", false},
		{"tcm-user/5/dev_/overlaybd/x", Backstore{}, "", false},
		{"tcm-user/-5/dev_1/overlaybd/x", Backstore{}, "", false},
		{"tcm-user/99999999999/dev_1/overlaybd/x", Backstore{}, "", false},
		{"tcm-user/5/dev_1", Backstore{}, "", false},
		{"uio_pci_generic", Backstore{}, "", false},
		{"", Backstore{}, "", false},
	} {
		got, config, err := parseName(c.name)
		if (err == nil) != c.ok || got != c.want || config != c.config {
			t.Errorf("%q: %+v, %q, %v, want %+v, %q", c.name, got, config, err, c.want, c.config)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("tcm-user/999999999/dev_12/overlaybd//var/lib/12/config.v1.json")
	f.Fuzz(func(t *testing.T, name string) {
		b, _, err := parseName(name)
		if err == nil && (b.ID == "" || b.HBA < 0 || strings.Contains(b.ID, "/")) {
			t.Errorf("%q: %+v", name, b)
		}
	})
}

// fakeTree makes files where the kernel would show objects.
func fakeTree(t *testing.T, files map[string]string) Tree {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(to, name); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Tree{Target: filepath.Join(dir, "target"), Sys: filepath.Join(dir, "sys"), Dev: filepath.Join(dir, "dev"), Proc: filepath.Join(dir, "proc")}
}

func TestFindWhatIsThere(t *testing.T) {
	const lunOf = "/tpgt_1/lun/lun_0/"
	tree := fakeTree(t, map[string]string{
		"target/core/user_999999999/hba_info":                    "",
		"target/core/user_999999999/dev_1/attrib/dev_size":       "4096\n",
		"target/core/user_999999999/dev_2/attrib/dev_size":       "what\n",
		"target/core/user_5/dev_1/control":                       "",
		"target/loopback/naa.1990000000000001" + lunOf + "dev_1": "-> ../../../../../../target/core/user_999999999/dev_1",
		"target/loopback/naa.1990000000000002/tpgt_1/address":    "0:0:1",
		"target/loopback/naa.1050000000000001" + lunOf + "dev_1": "-> ../../../../../../target/core/user_105/dev_1",
		"sys/class/uio/uio0/name":                                "hpet\n",
		"sys/class/uio/uio1/name":                                "tcm-user/5/dev_1/overlaybd/\n",
		"sys/class/uio/uio2/name":                                "tcm-user/999999999/dev_1/overlaybd/config\n",
		"sys/class/uio/uio2/maps/map0/size":                      "0x0000000000890000\n",
	})
	one, two, other := Backstore{defaultHBA, "1"}, Backstore{defaultHBA, "2"}, Backstore{5, "1"}
	if got, err := tree.Backstores(defaultHBA); err != nil || !slices.Equal(got, []Backstore{one, two}) {
		t.Errorf("backstores %v, %v", got, err)
	}
	if got, err := tree.Backstores(7); err != nil || len(got) != 0 {
		t.Errorf("backstores of no one: %v, %v", got, err)
	}
	for b, want := range map[Backstore]bool{one: true, two: false, other: false} {
		if got := tree.Attached(b); got != want {
			t.Errorf("%+v attached: %v, want %v", b, got, want)
		}
	}
	u, err := tree.FindUIO(one)
	if err != nil || u.Name != "uio2" || u.Config != "config" || u.Node != filepath.Join(tree.Dev, "uio2") {
		t.Errorf("UIO device %+v, %v", u, err)
	}
	if n, err := tree.MapSize(u); err != nil || n != 0x890000 {
		t.Errorf("map of %#x, %v", n, err)
	}
	if _, err := tree.FindUIO(two); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("UIO device of what is not enabled: %v", err)
	}
	if n, err := tree.Size(one); err != nil || n != 4096 {
		t.Errorf("size %d, %v", n, err)
	}
	if _, err := tree.Size(two); err == nil {
		t.Error("a size that is no number was parsed")
	}
}

// TestMissing asks for errors that name what is not there.
func TestMissing(t *testing.T) {
	tree := fakeTree(t, map[string]string{"target/version": ""})
	b := Backstore{defaultHBA, "1"}
	for name, err := range map[string]error{
		"create": tree.Create(b, Params{}),
		"enable": tree.Enable(t.Context(), b),
		"events": tree.ResetEvents(),
	} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), t.Name()) {
			t.Errorf("%s: %v, want the path of what is missing", name, err)
		}
	}
	if err := errors.Join(tree.Detach(b), tree.Destroy(b)); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}
