// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push uploads the image under repo:tag and returns its reference.
func (r *Registry) Push(t testing.TB, i Image, repo, tag string) (ref string) {
	t.Helper()
	if err := r.push(t, i, repo, tag, i.Top); err != nil {
		t.Fatalf("push %s:%s: %v", repo, tag, err)
	}
	return r.Host + "/" + repo + ":" + tag
}

// push uploads what desc names, children first, as registries demand.
func (r *Registry) push(t testing.TB, i Image, repo, tag string, desc ocispec.Descriptor) error {
	text, err := os.ReadFile(i.blob(desc.Digest))
	if err != nil {
		return err
	}
	var top struct {
		Config    *ocispec.Descriptor
		Layers    []ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(text, &top); err != nil {
		return err
	}
	for _, m := range top.Manifests {
		if err := r.push(t, i, repo, m.Digest.String(), m); err != nil {
			return err
		}
	}
	blobs := top.Layers
	if top.Config != nil {
		blobs = append(blobs, *top.Config)
	}
	for _, b := range blobs {
		if err := r.pushBlob(t, i, repo, b); err != nil {
			return err
		}
	}
	url := fmt.Sprintf("http://%s/v2/%s/manifests/%s", r.Host, repo, tag)
	_, err = r.do(t, http.MethodPut, url, desc.MediaType, bytes.NewReader(text), desc.Size)
	return err
}

func (r *Registry) pushBlob(t testing.TB, i Image, repo string, desc ocispec.Descriptor) error {
	f, err := os.Open(i.blob(desc.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	where, err := r.do(t, http.MethodPost, fmt.Sprintf("http://%s/v2/%s/blobs/uploads/", r.Host, repo), "", http.NoBody, 0)
	if err != nil {
		return err
	}
	query := where.Query()
	query.Set("digest", desc.Digest.String())
	where.RawQuery = query.Encode()
	_, err = r.do(t, http.MethodPut, where.String(), "application/octet-stream", f, desc.Size)
	return err
}

// do sends one request and returns where the answer says to go on.
func (r *Registry) do(t testing.TB, method, target, mediaType string, body io.Reader, size int64) (*url.URL, error) {
	req, err := http.NewRequestWithContext(t.Context(), method, target, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("%s %s: %s: %s", method, target, resp.Status, text)
	}
	where, err := resp.Location()
	if errors.Is(err, http.ErrNoLocation) {
		return nil, nil
	}
	return where, err
}
