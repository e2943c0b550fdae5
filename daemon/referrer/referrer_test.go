// SPDX-License-Identifier: Apache-2.0

package referrer_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/daemon/referrer"
)

func newFinder(t testing.TB, f referrer.Registry, change ...func(*referrer.Options)) (finder *referrer.Finder, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "attached")
	opts := referrer.Options{Registry: f, Dir: dir, Timeout: time.Minute}
	for _, c := range change {
		c(&opts)
	}
	finder, err := referrer.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := finder.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left %s: %v", dir, err)
		}
	})
	return finder, dir
}

const image = "registry.test/app:1"

// TestFind: many that pull an image at once ask the registry once, and get all
// that it takes.
func TestFind(t *testing.T) {
	f := newRegistry()
	subject, attached, source := f.turbo(t)
	finder, _ := newFinder(t, f)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			img, err := finder.Find(t.Context(), image, subject.Digest)
			if err != nil {
				t.Error(err)
				return
			}
			if img.Manifest != attached.Digest || len(img.Layers) != 2 {
				t.Errorf("found %+v", img)
				return
			}
			for i, l := range img.Layers {
				of := source.Layers[i]
				if l.Source != of.Digest || l.SourceType != of.MediaType || l.Size != int64(len(f.blobs[l.Digest])) {
					t.Errorf("layer %d: %+v", i, l)
				}
				got, err := os.ReadFile(filepath.Join(l.Files, "ext4.fs.meta"))
				if want := "metadata for " + of.Digest.String(); err != nil || string(got) != want {
					t.Errorf("layer %d: metadata %q, %v", i, got, err)
				}
			}
		})
	}
	all.Wait()
	if n := f.asked.Load(); n != 1 {
		t.Errorf("the registry was asked %d times", n)
	}
}

// TestFindNative: an image with content of its own is taken where there is no
// TurboOCI one that fits.
func TestFindNative(t *testing.T) {
	f := newRegistry()
	subject, source := f.image(t)
	native := f.attach(t, referrer.TypeNative, subject, f.block([]byte("a"), ""), f.block([]byte("b"), ""))
	f.attach(t, referrer.TypeTurbo, subject, f.block(archive(t), source.Layers[0].Digest)) // one layer is missing
	f.attach(t, "application/vnd.signature", subject)
	finder, _ := newFinder(t, f)
	img, err := finder.Find(t.Context(), image, subject.Digest)
	if err != nil {
		t.Fatal(err)
	}
	want := &referrer.Image{Manifest: native.Digest}
	for i, text := range []string{"a", "b"} {
		want.Layers = append(want.Layers, referrer.Layer{
			Source: source.Layers[i].Digest, SourceType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(text), Size: 1,
		})
	}
	if d := cmp.Diff(want, img); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestFindNothing: what is wrong with what a registry has, and that nothing is
// left of it.
func TestFindNothing(t *testing.T) {
	whole := func(t *testing.T, f *fakeRegistry) (ocispec.Descriptor, ocispec.Manifest, []ocispec.Descriptor) {
		subject, source := f.image(t)
		var layers []ocispec.Descriptor
		for _, l := range source.Layers {
			layers = append(layers, f.block(archive(t, file("ext4.fs.meta", l.Digest.String())), l.Digest))
		}
		return subject, source, layers
	}
	for _, tc := range []struct {
		name string
		make func(t *testing.T, f *fakeRegistry) (subject ocispec.Descriptor)
		want string
	}{
		{"none", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _ := f.image(t)
			f.attach(t, "application/vnd.signature", subject)
			return subject
		}, referrer.ErrNone.Error()},
		{"another subject", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			f.attach(t, referrer.TypeTurbo, layers[0], layers...)
			return subject
		}, "its subject is another image"},
		{"another target", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			f.attach(t, referrer.TypeTurbo, subject, layers[1], layers[0])
			return subject
		}, "layer 0: its content is not in"},
		{"TurboOCI called native", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			f.attach(t, referrer.TypeNative, subject, layers...)
			return subject
		}, "its content is in another layer"},
		{"too many layers", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			f.attach(t, referrer.TypeTurbo, subject, append(layers, layers[0])...)
			return subject
		}, "it has 3 layers where the image has 2"},
		{"large", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			layers[1].Size = 1 << 30
			layers[1].Annotations["containerd.io/snapshot/overlaybd/blob-size"] = "1073741824"
			f.attach(t, referrer.TypeTurbo, subject, layers...)
			return subject
		}, "its metadata are larger than"},
		{"missing metadata", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			f.attach(t, referrer.TypeTurbo, subject, layers...)
			delete(f.blobs, layers[1].Digest)
			return subject
		}, "no such blob"},
		{"damaged metadata", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			f.attach(t, referrer.TypeTurbo, subject, layers...)
			f.blobs[layers[1].Digest][4] ^= 1 // of gzip's idea of the time
			return subject
		}, "its content is sha256:"},
		{"longer metadata", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			f.attach(t, referrer.TypeTurbo, subject, layers...)
			f.blobs[layers[1].Digest] = append(f.blobs[layers[1].Digest], 0)
			return subject
		}, "longer than its descriptor"},
		{"damaged manifest", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			desc := f.attach(t, referrer.TypeTurbo, subject, layers...)
			f.blobs[desc.Digest] = []byte("{}")
			return subject
		}, "its content is sha256:"},
		{"endless manifest", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			desc := f.attach(t, referrer.TypeTurbo, subject, layers...)
			f.blobs[desc.Digest] = bytes.Repeat([]byte(" "), 5<<20)
			return subject
		}, "larger than"},
		{"another image", func(t *testing.T, f *fakeRegistry) ocispec.Descriptor {
			subject, _, layers := whole(t, f)
			f.attach(t, referrer.TypeTurbo, subject, layers...)
			f.blobs[subject.Digest] = []byte("{}")
			return subject
		}, "its content is sha256:"},
		{"no digest", func(*testing.T, *fakeRegistry) ocispec.Descriptor {
			return ocispec.Descriptor{Digest: "sha256:../x"}
		}, "digest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newRegistry()
			subject := tc.make(t, f)
			finder, dir := newFinder(t, f)
			img, err := finder.Find(t.Context(), image, subject.Digest)
			if img != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %+v, %v; want an error with %q", img, err, tc.want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// TestFindRemembers: an answer holds for its time from when it was last given,
// with its files, and then the registry is asked again.
func TestFindRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRegistry()
		subject, _ := f.image(t)
		finder, dir := newFinder(t, f, func(o *referrer.Options) { o.Remember = 10 * time.Minute })
		find := func(after time.Duration, asked int64) (*referrer.Image, error) {
			t.Helper()
			time.Sleep(after)
			img, err := finder.Find(t.Context(), image, subject.Digest)
			if n := f.asked.Load(); n != asked {
				t.Errorf("after %v the registry was asked %d times, want %d", after, n, asked)
			}
			return img, err
		}
		for _, after := range []time.Duration{0, 6 * time.Minute, 6 * time.Minute} {
			if _, err := find(after, 1); !errors.Is(err, referrer.ErrNone) {
				t.Errorf("got %v, want none", err)
			}
		}
		f.turbo(t)
		if img, err := find(11*time.Minute, 2); err != nil || img == nil {
			t.Errorf("got %v, %v", img, err)
		}
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left %v, %v", left, err)
		}
	})
}

// TestFindTimeout: a registry that hangs costs what it may, and whoever stops
// waiting leaves the search to the others.
func TestFindTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRegistry()
		subject, _, _ := f.turbo(t)
		f.hook = func(ctx context.Context, what string) error {
			if what != "referrers" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		finder, _ := newFinder(t, f, func(o *referrer.Options) { o.Timeout = 10 * time.Second })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := finder.Find(ctx, image, subject.Digest); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the caller's deadline", err)
		}
		start := time.Now()
		_, err := finder.Find(t.Context(), image, subject.Digest)
		if err == nil || !strings.Contains(err.Error(), "no answer within 10s") || time.Since(start) != 9*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// TestFindClose: a search under way ends with the Finder.
func TestFindClose(t *testing.T) {
	f := newRegistry()
	subject, _, _ := f.turbo(t)
	hangs := make(chan struct{})
	f.hook = func(ctx context.Context, what string) error {
		if what == "referrers" {
			close(hangs)
		}
		<-ctx.Done()
		return ctx.Err()
	}
	finder, _ := newFinder(t, f)
	found := make(chan error)
	go func() {
		_, err := finder.Find(context.Background(), image, subject.Digest)
		found <- err
	}()
	<-hangs
	if err := finder.Close(); err != nil {
		t.Error(err)
	}
	if err := <-found; err == nil {
		t.Error("found an image")
	}
	if _, err := finder.Find(t.Context(), "other", subject.Digest); err == nil {
		t.Error("a closed Finder found an image")
	}
}

// FuzzManifest finds an image whose manifest a stranger wrote.
func FuzzManifest(f *testing.F) {
	good := newRegistry()
	_, attached, _ := good.turbo(f)
	f.Add(good.blobs[attached.Digest])
	f.Add([]byte(`{"layers":[{},{"size":-1}],"subject":{"digest":"sha256:"}}`))
	finder, _ := newFinder(f, good)
	f.Fuzz(func(t *testing.T, text []byte) {
		reg := newRegistry()
		subject, _, source := reg.turbo(t)
		desc := reg.add(ocispec.MediaTypeImageManifest, text)
		desc.ArtifactType = referrer.TypeTurbo
		reg.referrers = []ocispec.Descriptor{desc}
		good.blobs, good.referrers = reg.blobs, reg.referrers
		img, err := finder.Find(t.Context(), desc.Digest.String(), subject.Digest)
		if err != nil {
			return
		}
		if len(img.Layers) != len(source.Layers) {
			t.Fatalf("found %+v", img)
		}
		for i, l := range img.Layers {
			if l.Source != source.Layers[i].Digest || l.Digest.Validate() != nil || l.Size <= 0 {
				t.Fatalf("layer %d: %+v", i, l)
			}
		}
	})
}
