// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/image/spec"
)

const (
	dgst = "sha256:c3a417552a6cf9ffa959b541850bab7d7f08f4255425bf8b48c85f7b36b378d9"
	repo = "https://registry-1.docker.io/v2/library/redis/blobs"
)

// TestParseReference reads a file as the reference's snapshotter writes it.
func TestParseReference(t *testing.T) {
	v, err := spec.Parse([]byte(`{"repoBlobUrl":"` + repo + `","lowers":[
		{"dir":"/snap/1/fs","digest":"` + dgst + `","size":4737695},
		{"file":"/snap/2/fs/ext4.fs.meta","dir":"/snap/2/fs","targetDigest":"` + dgst + `","gzipIndex":"/snap/2/fs/gzip.meta"}],
		"upper":{},"resultFile":"/snap/2/block/init-debug.log","unknown":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if v.Writable() {
		t.Error("a volume with an empty upper is writable")
	}
	if got, want := v.BlobURL(v.Lowers[0]), repo+"/"+dgst; got != want {
		t.Errorf("got blob URL %s, want %s", got, want)
	}
	if v.Lowers[0].Size != 4737695 || v.Lowers[1].GzipIndex != "/snap/2/fs/gzip.meta" {
		t.Errorf("lowers misread: %+v", v.Lowers)
	}
}

func TestLowerFromAnotherRepository(t *testing.T) {
	v := &spec.Volume{RepoBlobURL: repo}
	l := spec.Lower{Digest: dgst, RepoBlobURL: "https://other/v2/a/blobs"}
	if got, want := v.BlobURL(l), "https://other/v2/a/blobs/"+dgst; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	l.TargetDigest = l.Digest
	if got, want := v.TargetURL(l), "https://other/v2/a/blobs/"+dgst; got != want {
		t.Errorf("got target %s, want %s", got, want)
	}
}

func TestSaveLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.v1.json")
	want := &spec.Volume{
		RepoBlobURL: repo,
		Lowers:      []spec.Lower{{Dir: "/snap/1/fs", Digest: dgst, Size: 7}},
		Upper:       spec.Upper{Data: "/d", Index: "/i", VSizeGB: 64, Sparse: true},
		ResultFile:  "/r",
	}
	for range 2 { // the second replaces the first
		if err := want.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	got, err := spec.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("saved and loaded differ (-want +got):\n%s", d)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("got %d files beside the spec (%v), want it alone", len(entries), err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, want 0600", st.Mode())
	}
}

func TestInvalid(t *testing.T) {
	many := strings.Repeat(`{"file":"/f"},`, spec.MaxLowers) + `{"file":"/f"}`
	for _, tc := range []struct{ name, text, want string }{
		{"empty", ``, "JSON"},
		{"no layers", `{}`, "no lowers"},
		{"path as digest", `{"repoBlobUrl":"u","lowers":[{"digest":"sha256:../../etc/passwd"}]}`, "not a sha256 digest"},
		{"weak digest", `{"repoBlobUrl":"u","lowers":[{"digest":"md5:00"}]}`, "not a sha256 digest"},
		{"remote without repository", `{"lowers":[{"digest":"` + dgst + `"}]}`, "repoBlobUrl is empty"},
		{"target without repository", `{"lowers":[{"file":"/f","targetDigest":"` + dgst + `"}]}`, "target " + dgst + " is remote but repoBlobUrl is empty"},
		{"index without target", `{"lowers":[{"file":"/f","gzipIndex":"/x"}]}`, "gzipIndex /x without"},
		{"lower of nothing", `{"lowers":[{}]}`, "lowers[0]: neither"},
		{"half an upper", `{"upper":{"data":"/d"}}`, "together"},
		{"negative size", `{"lowers":[{"file":"/f","size":-1}]}`, "negative"},
		{"too many", `{"lowers":[` + many + `]}`, "256 lowers"},
		{"wrong type", `{"lowers":"x"}`, "lowers"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := spec.Parse([]byte(tc.text))
			if v != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v; want an error with %q", v, err, tc.want)
			}
		})
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing.json")
	if _, err := spec.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want an error naming %s", err, path)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"repoBlobUrl":"u","lowers":[{"digest":"` + dgst + `"}],"upper":{"data":"d","index":"i"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := spec.Parse(text)
		if (v == nil) != (err != nil) {
			t.Fatalf("got %v with error %v", v, err)
		}
		if err == nil && v.Validate() != nil {
			t.Fatal("a parsed spec is invalid")
		}
	})
}
