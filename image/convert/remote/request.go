// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A request is one request to the registry.
type request struct {
	method string
	url    *url.URL
	header http.Header
	body   io.ReaderAt // nil for none
	off, n int64       // what of body is sent

	from string // another repository to be read, "" for none
}

// maxLogins is how often one request is sent: without authorization, with a
// token that has expired, with a new one.
const maxLogins = 3

// send sends a request and returns the answer, whatever its status. Failures
// on the way are fetcher.ErrTemporary.
func (r *Repository) send(ctx context.Context, q request) (*http.Response, error) {
	ctx = docker.WithScope(ctx, r.scope)
	if q.from != "" {
		ctx = docker.ContextWithAppendPullRepositoryScope(ctx, q.from)
	}
	var answers []*http.Response
	for {
		resp, err := r.try(ctx, q)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || len(answers) == maxLogins-1 {
			return resp, err
		}
		discard(resp)
		answers = append(answers, resp)
		if err := r.host.Authorizer.AddResponses(ctx, answers); err != nil {
			return nil, denied(ctx, err)
		}
	}
}

// try sends a request once.
func (r *Repository) try(ctx context.Context, q request) (*http.Response, error) {
	w := newWatch(ctx, r.c.opts.Stall)
	req, err := r.make(w, q)
	if err != nil {
		w.stop()
		return nil, err
	}
	if q.url.Host == r.host.Host { // an upload may be sent elsewhere
		if err := r.host.Authorizer.Authorize(w.ctx, req); err != nil {
			w.stop()
			return nil, denied(ctx, err)
		}
	}
	resp, err := r.host.Client.Do(req)
	if err != nil {
		err = w.err(err)
		w.stop()
		return nil, err
	}
	resp.Body = &watchedBody{watchedReader{w, resp.Body, false}, resp.Body}
	return resp, nil
}

// make returns the HTTP request.
func (r *Repository) make(w *watch, q request) (*http.Request, error) {
	req, err := http.NewRequestWithContext(w.ctx, q.method, q.url.String(), http.NoBody)
	if err != nil {
		return nil, errors.New("the registry named a URL that cannot be used")
	}
	if q.body != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(&watchedReader{w, io.NewSectionReader(q.body, q.off, q.n), true}), nil
		}
		req.Body, _ = req.GetBody() // it returns no error
		req.ContentLength = q.n
	}
	for key, values := range r.host.Header {
		req.Header[http.CanonicalHeaderKey(key)] = values
	}
	for key, values := range q.header {
		req.Header[key] = values
	}
	req.Header.Set("User-Agent", r.c.opts.UserAgent)
	return req, nil
}

// denied returns the error of a login that did not work out.
func denied(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var sent *url.Error
	if errors.As(err, &sent) {
		return temporary("log in at %s: %w", sent.URL[:min(len(sent.URL), 200)], sent.Err)
	}
	var answered remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &answered) && answered.StatusCode >= http.StatusInternalServerError {
		return temporary("log in: the token service answered %s", answered.Status)
	}
	return fmt.Errorf("%w: %w", fetcher.ErrUnauthorized, err)
}

// temporary returns an ErrTemporary.
func temporary(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{fetcher.ErrTemporary}, args...)...)
}

// errStalled is why a watch cancels a request.
var errStalled = errors.New("no progress for too long")

// A watch cancels a request that makes no progress.
type watch struct {
	ctx    context.Context //nolint:containedctx // the request's
	parent context.Context //nolint:containedctx // the caller's
	cancel context.CancelCauseFunc
	timer  *time.Timer
	most   time.Duration
}

func newWatch(ctx context.Context, most time.Duration) *watch {
	w := &watch{parent: ctx, most: most}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(most, func() { w.cancel(errStalled) })
	return w
}

func (w *watch) progress() { w.timer.Reset(w.most) }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// err returns what a request failed with, without the URL, which may be
// signed.
func (w *watch) err(err error) error {
	if w.parent.Err() != nil {
		return context.Cause(w.parent)
	}
	if errors.Is(context.Cause(w.ctx), errStalled) {
		return temporary("%w", errStalled)
	}
	var sent *url.Error
	if errors.As(err, &sent) {
		err = sent.Err
	}
	var untrusted *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	var local *contentError
	var name *net.DNSError
	switch {
	case errors.As(err, &untrusted) || errors.As(err, &plain) || errors.As(err, &local),
		errors.As(err, &name) && name.IsNotFound:
		return err // trying again would not help
	}
	return temporary("%v", err) // not wrapped: net/http's timeouts look like the caller's
}

// A contentError is a failure to read what is to be uploaded.
type contentError struct{ error }

func (e *contentError) Unwrap() error { return e.error }

// A watchedReader is the body of a request, or of an answer.
type watchedReader struct {
	w    *watch
	r    io.Reader
	ours bool // it is the request's
}

func (b *watchedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.w.progress()
	switch {
	case err == nil || errors.Is(err, io.EOF):
	case b.ours:
		err = &contentError{err}
	default:
		err = b.w.err(err)
	}
	return n, err
}

type watchedBody struct {
	watchedReader
	c io.Closer
}

func (b *watchedBody) Close() error {
	err := b.c.Close()
	b.w.stop()
	return err
}

// discard reads what little is left of an answer, so that its connection can
// be used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10) // bytes; more is not worth it
	_ = resp.Body.Close()
}

// failure returns the error of an unwelcome answer, and closes it.
func (r *Repository) failure(resp *http.Response) error {
	defer discard(resp)
	text := fmt.Sprintf("%s answered %d %s%s", resp.Request.URL.Host, resp.StatusCode, http.StatusText(resp.StatusCode), reason(resp.Body))
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return fmt.Errorf("%w: %s", fetcher.ErrUnauthorized, text)
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %s", errdefs.ErrNotFound, text)
	case code == http.StatusRequestTimeout || code == http.StatusTooEarly || code == http.StatusTooManyRequests || code >= 500:
		if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
			return &fetcher.RetryAfterError{After: time.Duration(s) * time.Second, Err: errors.New(text)}
		}
		return temporary("%s", text)
	}
	return errors.New(text)
}

// reason returns what the body of an answer says went wrong.
func reason(body io.Reader) string {
	text, err := io.ReadAll(io.LimitReader(body, 16<<10)) // bytes; a few errors take less than 1 KiB
	if err != nil {
		return ""
	}
	var all struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(text, &all) != nil || len(all.Errors) == 0 {
		return ""
	}
	var b strings.Builder
	for _, e := range all.Errors[:min(len(all.Errors), 3)] {
		fmt.Fprintf(&b, ", %.40s: %.200q", strings.ToValidUTF8(strings.Map(printable, e.Code), ""), e.Message)
	}
	return b.String()
}

// printable drops what a terminal might take for a command.
func printable(c rune) rune {
	if c < ' ' || c == 0x7f {
		return -1
	}
	return c
}
