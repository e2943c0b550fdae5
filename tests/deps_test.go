// SPDX-License-Identifier: Apache-2.0

// Package tests holds what concerns the project as a whole.
package tests

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/overlaybd-go/overlaybd/"

// floors lists, for every room, which rooms of the project its code may
// import. An entry ending in "/*" stands for a room and all below it. A room
// may always import what lies inside itself. Tests are free.
var floors = []struct {
	room string
	may  []string
}{
	// 0 contracts
	{"fetcher", nil},
	{"backend", nil},
	// 1 parts
	{"fetcher/fetchertest", []string{"fetcher"}},
	{"fetcher/registry", []string{"fetcher", "fetcher/rangeget"}},
	{"fetcher/http", []string{"fetcher", "fetcher/rangeget"}},
	{"fetcher/s3", []string{"fetcher", "fetcher/rangeget"}},
	{"fetcher/agent", []string{"fetcher", "fetcher/limit", "fetcher/rangeget"}},
	{"fetcher/mirror", []string{"fetcher", "fetcher/limit"}},
	{"fetcher/source", []string{"fetcher", "fetcher/mirror", "fetcher/registry"}},
	{"fetcher/*", []string{"fetcher"}},
	{"cache", []string{"fetcher"}},
	{"backend/ublk/internal/driver", []string{"backend/ublk/internal/uring"}},
	{"backend/*", []string{"backend", "backend/internal/*"}},
	{"image/spec", nil},
	{"image/lsmt", []string{"fetcher", "backend"}},
	{"image/zfile", []string{"fetcher"}},
	{"image/tarblob", []string{"fetcher"}},
	{"image/spans", []string{"fetcher"}},
	{"image/gzidx", []string{"fetcher", "image/spans"}},
	{"image/turbo", nil},
	{"image/vfs", nil},
	{"image/zstdidx", []string{"fetcher", "image/spans"}},
	{"image/ext4", []string{"fetcher", "backend", "image/vfs"}},
	{"image/erofs", []string{"backend", "image/vfs"}},
	{"image/loader", []string{"fetcher", "backend", "image/ext4", "image/erofs", "image/vfs"}},
	// 2 assembly
	{"image", []string{"fetcher", "backend", "image/*"}},
	{"image/build", []string{"fetcher", "fetcher/file", "backend", "image", "image/*"}},
	// 3 services
	{"daemon/blockapi", nil},
	{"daemon/blockapi/*", nil},
	{"daemon/blockd", []string{"fetcher", "backend", "cache", "image", "image/*", "daemon/blockapi", "daemon/download"}},
	{"daemon/download", []string{"fetcher", "fetcher/file", "fetcher/limit", "cache", "image/spec"}},
	{"daemon/referrer", []string{"image/turbo"}},
	{"daemon/snapshotter", []string{"daemon/blockapi", "daemon/referrer", "image/spec", "image/turbo"}},
	{"daemon/snapshotter/*", nil},
	{"daemon", nil},
	{"conf", nil},
	// 4 and 5: only commands assemble everything
	{"image/convert", []string{"fetcher", "backend", "image", "image/*", "fetcher/registry"}},
	{"image/convert/dedup", nil},
	{"image/convert/store", nil},
	{"image/convert/layout", []string{"image/convert/store"}},
	{"image/convert/archive", []string{"image/convert/store", "image/convert/layout"}},
	{"image/convert/remote", []string{"image/convert/store", "fetcher", "fetcher/registry", "fetcher/retry"}},
	{"image/convert/pipeline", []string{"image/convert", "image/convert/store", "image", "image/*", "fetcher", "fetcher/file"}},
	{"image/convert/memory", []string{"image/convert", "image/convert/dedup", "image/convert/pipeline", "fetcher"}},
	{"cmd/*", []string{"*"}},
	{"tests/*", []string{"*"}},
	{"tests", []string{"*"}},
}

// confined lists modules that only the named rooms may import.
var confined = map[string][]string{
	"github.com/hanwen/go-fuse/":          {"backend/fuse"},
	"github.com/pierrec/lz4/":             {"image/zfile"},
	"github.com/BurntSushi/toml":          {"conf"},
	"github.com/lmittmann/tint":           {"daemon"},
	"github.com/go-sql-driver/mysql":      {"image/convert/dedup"},
	"modernc.org/sqlite":                  {"image/convert/dedup"},
	"github.com/containerd/containerd/v2": {"fetcher/*", "daemon/snapshotter", "cmd/*", "image/convert", "image/convert/archive", "image/convert/remote", "tests/*"},
	"github.com/mdlayher/":                {"backend/tcmu/*"},
	"github.com/aws/":                     {"fetcher/s3"},
	"google.golang.org/grpc":              {"daemon/blockapi", "daemon/blockapi/*", "daemon/snapshotter", "cmd/*", "tests/*"},
}

// TestFloors holds the import table of docs/architecture.md against the code.
func TestFloors(t *testing.T) {
	for _, p := range packages(t) {
		room := strings.TrimPrefix(p.ImportPath, module)
		may, ok := allowed(room)
		if !ok {
			t.Errorf("%s stands on no floor: add it to the table and to docs/architecture.md", room)
		}
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, module); ok && !covers(may, ours) && !strings.HasPrefix(ours, room+"/") {
				t.Errorf("%s imports %s, which its floor forbids", room, ours)
			}
			for mod, rooms := range confined {
				if strings.HasPrefix(imp, mod) && !covers(rooms, room) {
					t.Errorf("%s imports %s, which only %v may", room, imp, rooms)
				}
			}
		}
	}
}

// allowed returns what the first entry that covers room may import.
func allowed(room string) (may []string, ok bool) {
	for _, f := range floors {
		if covers([]string{f.room}, room) {
			return f.may, true
		}
	}
	return nil, false
}

func covers(rooms []string, room string) bool {
	return slices.ContainsFunc(rooms, func(r string) bool {
		prefix, tree := strings.CutSuffix(r, "*")
		return r == room || tree && strings.HasPrefix(room, prefix)
	})
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
