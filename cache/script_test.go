// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlaybd-go/overlaybd/cache"
	"github.com/overlaybd-go/overlaybd/fetcher"
)

var rewrite = flag.Bool("rewrite", false, "write the golden output of scripts anew")

// TestScripts runs testdata/*.txt. A script is a list of steps, one a line;
// below each, indented, stands what reached the source because of it. Lines
// that begin with # are comments. -rewrite writes the output anew.
//
//	cache [block=16K] [extent=256K] [max=4M] [inflight=64M] [size=20M]
//	        closes the cache, if any, and opens it with these options
//	blob NAME SIZE [SPAN]   opens a Blob under key NAME; a handle is NAME or NAME/x.
//	        Its source makes spans of SPAN bytes
//	read NAME OFF N         ReadAt
//	steps NAME OFF N STEP   ReadAt of STEP bytes at a time, in order
//	stream NAME OFF N       ReadRange, read whole
//	prefetch|ask|drop NAME OFF N
//	fail NAME OFF           the source fails from byte OFF on; "fail NAME none" heals it
//	close NAME
//	stats NAME
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) { runScript(t, name) })
	}
}

func runScript(t *testing.T, name string) {
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, dir: t.TempDir(), blobs: make(map[string]*cache.Blob), sources: make(map[string]*scriptSource)}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "  ") {
			continue // old output
		}
		out.WriteString(line)
		if step := strings.Fields(line); len(step) > 0 && !strings.HasPrefix(line, "#") {
			for _, l := range s.do(step) {
				fmt.Fprintf(&out, "  %s\n", l)
			}
		}
	}
	s.closeAll()
	if *rewrite {
		if err := os.WriteFile(name, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(text), out.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

type script struct {
	t       *testing.T
	dir     string
	c       *cache.Cache
	blobs   map[string]*cache.Blob
	sources map[string]*scriptSource
}

// A scriptSource fails from an offset on.
type scriptSource struct {
	*source
	failFrom int64
}

var errScripted = errors.New("scripted failure")

func (s *script) do(step []string) (out []string) {
	verb, args := step[0], step[1:]
	if verb == "cache" {
		s.open(args)
		return nil
	}
	if verb == "blob" {
		s.blob(args[0], args[1:])
		return nil
	}
	b, ok := s.blobs[args[0]]
	if !ok {
		s.t.Fatalf("no blob %s", args[0])
	}
	if err := s.blobStep(verb, args, b, &out); err != nil {
		out = append(out, "error: "+strings.ReplaceAll(err.Error(), " of blob "+dgst(key(args[0])).String(), ""))
	}
	s.c.Quiesce()
	return append(s.asked(), out...)
}

func (s *script) blobStep(verb string, args []string, b *cache.Blob, out *[]string) error {
	switch verb {
	case "fail":
		s.sources[args[0]].failFrom = 1 << 60
		if args[1] != "none" {
			s.sources[args[0]].failFrom = s.number(args[1])
		}
		return nil
	case "close":
		delete(s.blobs, args[0])
		return b.Close()
	case "stats":
		st := b.Stats()
		*out = append(*out, fmt.Sprintf("hits %d, misses %d, from disk %s, %d fetches of %s, %d failed",
			st.Hits, st.Misses, human(st.HitBytes), st.Fetches, human(st.FetchedBytes), st.FetchErrors))
		return nil
	}
	off, n := s.number(args[1]), s.number(args[2])
	switch verb {
	case "read":
		return s.read(b, args[0], off, n)
	case "steps":
		for end, step := off+n, s.number(args[3]); off < end; off += step {
			if err := s.read(b, args[0], off, min(step, end-off)); err != nil {
				return err
			}
			s.c.Quiesce()
		}
		return nil
	case "stream":
		return s.stream(b, args[0], off, n)
	case "prefetch":
		return b.Prefetch(s.t.Context(), off, n)
	case "ask":
		return b.Ask(s.t.Context(), off, n)
	case "expect":
		return b.Expect(s.t.Context(), off, n)
	case "drop":
		return b.Drop(s.t.Context(), off, n)
	}
	s.t.Fatalf("unknown step %s", verb)
	return nil
}

func (s *script) read(b *cache.Blob, name string, off, n int64) error {
	p := make([]byte, n)
	if _, err := b.ReadAt(s.t.Context(), p, off); err != nil {
		return err
	}
	s.compare(name, p, off)
	return nil
}

func (s *script) stream(b *cache.Blob, name string, off, n int64) error {
	r, err := fetcher.ReadRange(s.t.Context(), b, off, n)
	if err != nil {
		return err
	}
	p, err := io.ReadAll(r)
	s.compare(name, p, off)
	return err
}

func (s *script) compare(name string, p []byte, off int64) {
	if string(p) != string(s.sources[name].data[off:off+int64(len(p))]) {
		s.t.Errorf("read %d bytes of %s at %d: wrong bytes", len(p), name, off)
	}
}

func (s *script) open(args []string) {
	s.closeAll()
	opts := cache.Options{Dir: s.dir, MinFree: -1}
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		n := s.number(value)
		switch name {
		case "block":
			opts.BlockSize = int(n)
		case "extent":
			opts.ExtentSize = int(n)
		case "max":
			opts.MaxExtent = int(n)
		case "inflight":
			opts.MaxInflightBytes = n
		case "size":
			opts.Size = n
		default:
			s.t.Fatalf("unknown option %s", a)
		}
	}
	c, err := cache.Open(opts)
	if err != nil {
		s.t.Fatal(err)
	}
	s.c = c
	eventually(s.t, "the cache fits into its size", func() bool { st := c.Stats(); return st.UsedBytes <= st.LimitBytes })
}

func (s *script) closeAll() {
	for _, b := range s.blobs {
		if err := b.Close(); err != nil {
			s.t.Error(err)
		}
	}
	clear(s.blobs)
	if s.c != nil {
		closeCache(s.t, s.c)
	}
}

func (s *script) blob(name string, args []string) {
	src := &scriptSource{newSource(content(s.number(args[0]))), 1 << 60}
	src.piece = 4096
	src.serve = func(_ context.Context, off, n int64) error {
		if off+n > src.failFrom {
			return errScripted
		}
		return nil
	}
	var opened fetcher.Blob = src.source
	if len(args) > 1 {
		opened = spanned{src.source, s.number(args[1])}
	}
	b, err := s.c.Blob(dgst(key(name)), opened)
	if err != nil {
		s.t.Fatal(err)
	}
	s.blobs[name], s.sources[name] = b, src
}

// key returns the key of a handle: what stands before the slash.
func key(handle string) string {
	k, _, _ := strings.Cut(handle, "/")
	return k
}

func (s *script) asked() (out []string) {
	for name, src := range s.sources {
		for _, r := range src.asked() {
			out = append(out, name+" "+r.String())
		}
	}
	return out
}

// number reads 4096, 4K, 1M or 1M+5.
func (s *script) number(text string) (n int64) {
	for term := range strings.SplitSeq(text, "+") {
		unit := int64(1)
		switch {
		case strings.HasSuffix(term, "K"):
			unit = 1 << 10
		case strings.HasSuffix(term, "M"):
			unit = 1 << 20
		}
		v, err := strconv.ParseInt(strings.TrimRight(term, "KM"), 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		n += v * unit
	}
	return n
}
