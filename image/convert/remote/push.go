// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// Push stores an index or manifest under its digest, or a config as a blob.
func (r *Repository) Push(ctx context.Context, desc ocispec.Descriptor, text []byte, _ []ocispec.Descriptor) error {
	if !isDocument(desc) {
		return r.PushBlob(ctx, desc, bytes.NewReader(text))
	}
	known, err := r.put(ctx, desc, desc.Digest.String(), text)
	if err != nil {
		return fmt.Errorf("push to %s: %w", r.repo, err)
	}
	if desc.ArtifactType == "" || known {
		return nil
	}
	return r.refer(ctx, desc, text)
}

// Tag gives the document, which the registry has, the repository's name.
func (r *Repository) Tag(ctx context.Context, desc ocispec.Descriptor) error {
	err := r.retry(ctx, func() error {
		text, _, err := r.document(ctx, desc.Digest.String(), []string{desc.MediaType})
		if err == nil && digest.FromBytes(text) != desc.Digest {
			err = temporary("%s returns something else for %s", r.host.Host, desc.Digest)
		}
		if err == nil {
			_, err = r.put(ctx, desc, r.name, text)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("tag %s:%s: %w", r.repo, r.name, err)
	}
	return nil
}

// put stores a document under a tag or its digest. It reports whether the
// registry keeps track of what the document refers to.
func (r *Repository) put(ctx context.Context, desc ocispec.Descriptor, name string, text []byte) (referrers bool, err error) {
	err = r.retry(ctx, func() error {
		resp, err := r.send(ctx, request{
			method: http.MethodPut, url: r.url("manifests", name), header: http.Header{"Content-Type": {desc.MediaType}},
			body: bytes.NewReader(text), n: int64(len(text)),
		})
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK {
			return r.failure(resp)
		}
		referrers = resp.Header.Get("OCI-Subject") != ""
		discard(resp)
		return nil
	})
	return referrers, err
}

// Mount makes a blob of another repository of the registry one of this
// repository. It reports false where the registry will not.
func (r *Repository) Mount(ctx context.Context, desc ocispec.Descriptor, from string) (ok bool, err error) {
	u := r.url("blobs", "uploads")
	u.Path += "/"
	u.RawQuery = url.Values{"mount": {desc.Digest.String()}, "from": {from}}.Encode()
	err = r.retry(ctx, func() error {
		resp, err := r.send(ctx, request{method: http.MethodPost, url: u, from: from})
		if errors.Is(err, fetcher.ErrUnauthorized) {
			return nil // to read that repository
		}
		if err != nil {
			return err
		}
		switch {
		case resp.StatusCode == http.StatusCreated:
			ok = true
		case resp.StatusCode == http.StatusAccepted: // it began an upload instead
			u := upload{r: r}
			if u.moved(resp) == nil {
				r.cancel(ctx, u.at)
			}
		case resp.StatusCode >= http.StatusInternalServerError:
			return r.failure(resp)
		}
		discard(resp)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("mount %s of %s in %s: %w", desc.Digest, from, r.repo, err)
	}
	return ok, nil
}

// location returns where an answer says to go on, nil if nowhere.
func location(resp *http.Response) *url.URL {
	u, err := resp.Location()
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil
	}
	return u
}

// courtesy bounds how long telling a registry to forget an upload takes: a
// registry that hangs may be why there is something to forget, and who has
// interrupted the conversion waits.
const courtesy = 3 * time.Second

// cancel tells the registry to forget an upload. One that will not forgets by
// itself in time.
func (r *Repository) cancel(ctx context.Context, u *url.URL) {
	if u == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), courtesy)
	defer stop()
	resp, err := r.send(ctx, request{method: http.MethodDelete, url: u})
	if err == nil {
		discard(resp)
	}
}

// PushBlob uploads a blob, unless the repository has it.
func (r *Repository) PushBlob(ctx context.Context, desc ocispec.Descriptor, content io.ReaderAt) error {
	if ok, err := r.Has(ctx, desc); ok || err != nil {
		return err
	}
	u := upload{r: r, desc: desc, content: content, chunk: r.c.opts.ChunkSize}
	if err := u.run(ctx); err != nil {
		r.cancel(ctx, u.at)
		return fmt.Errorf("upload %s to %s: %w", desc.Digest, r.repo, err)
	}
	return nil
}

// An upload is a blob on its way.
type upload struct {
	r       *Repository
	desc    ocispec.Descriptor
	content io.ReaderAt
	chunk   int64 // what one request carries
	at      *url.URL
	off     int64 // what the registry has got
	begun   int   // how often it has begun from the first byte
}

// maxBegun is how often an upload begins from the first byte, where the
// registry cannot go on with what it has got.
const maxBegun = 5

// run uploads all but the last chunk one by one, and the last with the
// request that completes the upload.
func (u *upload) run(ctx context.Context) error {
	if err := u.r.retry(ctx, func() error { return u.begin(ctx) }); err != nil {
		return err
	}
	for u.desc.Size-u.off > u.chunk {
		if err := u.step(ctx, u.patch); err != nil {
			return err
		}
	}
	return u.step(ctx, u.finish)
}

// step takes one step, asking the registry what it has got before it is taken
// again.
func (u *upload) step(ctx context.Context, f func(context.Context) error) error {
	var broken error
	return u.r.retry(ctx, func() error {
		if broken != nil {
			if done, err := u.resume(ctx); err != nil {
				return fmt.Errorf("%w, after: %v", err, broken) //nolint:errorlint // its class is not that of err
			} else if done {
				return nil
			}
		}
		broken = f(ctx)
		return broken
	})
}

// begin begins the upload from the first byte.
func (u *upload) begin(ctx context.Context) error {
	if u.begun == maxBegun {
		return fmt.Errorf("broken off %d times", u.begun)
	}
	start := u.r.url("blobs", "uploads")
	start.Path += "/"
	resp, err := u.r.send(ctx, request{method: http.MethodPost, url: start})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return u.r.failure(resp)
	}
	defer discard(resp)
	u.off = 0
	u.begun++
	if least, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil {
		u.chunk = max(u.chunk, least)
	}
	return u.moved(resp)
}

// moved notes where the upload goes on.
func (u *upload) moved(resp *http.Response) error {
	if u.at = location(resp); u.at == nil {
		return fmt.Errorf("%s does not say where to upload to", resp.Request.URL.Host)
	}
	if u.at.Host == u.r.host.Host {
		// A registry behind a proxy may not know how it is spoken to, and a
		// token is not sent in the clear where the registry is not.
		u.at.Scheme = u.r.host.Scheme
	}
	return nil
}

// patch uploads a chunk. A registry that will not take it is given the whole
// blob at once, which all take.
func (u *upload) patch(ctx context.Context) error {
	n := min(u.chunk, u.desc.Size-u.off)
	resp, err := u.r.send(ctx, request{
		method: http.MethodPatch, url: u.at, body: u.content, off: u.off, n: n,
		header: http.Header{
			"Content-Type":  {"application/octet-stream"},
			"Content-Range": {fmt.Sprintf("%d-%d", u.off, u.off+n-1)},
		},
	})
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusAccepted || resp.StatusCode == http.StatusNoContent {
		defer discard(resp)
		u.off += n
		return u.moved(resp)
	}
	err = u.r.failure(resp)
	if errors.Is(err, fetcher.ErrTemporary) || errors.Is(err, fetcher.ErrUnauthorized) {
		return err
	}
	u.chunk = u.desc.Size
	return u.begin(ctx)
}

// finish uploads what is left and names the digest.
func (u *upload) finish(ctx context.Context) error {
	to := *u.at
	query := to.Query()
	query.Set("digest", u.desc.Digest.String())
	to.RawQuery = query.Encode()
	q := request{
		method: http.MethodPut, url: &to, body: u.content, off: u.off, n: u.desc.Size - u.off,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
	}
	if q.n == 0 {
		q.body = nil
	}
	resp, err := u.r.send(ctx, q)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusCreated || resp.StatusCode == http.StatusNoContent {
		discard(resp)
		return nil
	}
	err = u.r.failure(resp)
	if errors.Is(err, errdefs.ErrNotFound) {
		return temporary("the upload is gone: %w", err)
	}
	return err
}

// resume finds out how much the registry has got of a broken upload. Where
// that does not become clear, it begins a new one. It reports whether the
// blob is complete, of which only the answer was lost.
func (u *upload) resume(ctx context.Context) (done bool, err error) {
	if u.off+u.chunk >= u.desc.Size {
		if done, err = u.r.Has(ctx, u.desc); done || err != nil {
			return done, err
		}
	}
	resp, err := u.r.send(ctx, request{method: http.MethodGet, url: u.at})
	if err != nil {
		return false, err
	}
	defer discard(resp)
	got, ok := received(resp.Header.Get("Range"))
	if resp.StatusCode != http.StatusNoContent || !ok || got > u.desc.Size {
		return false, u.begin(ctx)
	}
	u.off = got
	if resp.Header.Get("Location") == "" {
		return false, nil
	}
	return false, u.moved(resp)
}

// received returns how many bytes a Range header says have come. "0-0" is what
// registries say of none, too, so it says nothing.
func received(header string) (int64, bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || first != "0" || err != nil || n < 1 || n == 1<<63-1 {
		return 0, false
	}
	return n + 1, true
}
