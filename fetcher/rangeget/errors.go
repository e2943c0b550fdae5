// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// errStalled is the cause of a request that its watch has cancelled.
var errStalled = errors.New("no byte came in time")

// StatusError returns the error an unwelcome answer stands for. Only what is a
// definite no for this blob is permanent; the rest may pass.
func StatusError(r *http.Response) error {
	text := fmt.Sprintf("%s answered %d %s", r.Request.URL.Host, r.StatusCode, http.StatusText(r.StatusCode))
	switch code := r.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return fmt.Errorf("%w: %s", fetcher.ErrUnauthorized, text)
	case code == http.StatusNotFound || code == http.StatusGone || code == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w: %s", fetcher.ErrNotFound, text)
	case code == http.StatusRequestTimeout || code == http.StatusTooEarly || code == http.StatusTooManyRequests || code >= 500:
		if after := retryAfter(r.Header, time.Now()); after > 0 {
			return &fetcher.RetryAfterError{After: after, Err: errors.New(text)}
		}
		return Temporary("%s", text)
	}
	return errors.New(text)
}

// retryAfter parses a Retry-After header: seconds, or a date by the clock of
// the server, which may be another than ours.
func retryAfter(h http.Header, now time.Time) time.Duration {
	// A day is more than any reader will wait, and far from overflowing.
	const most = 24 * time.Hour
	s := h.Get("Retry-After")
	if sec, err := strconv.ParseUint(s, 10, 31); err == nil {
		return min(time.Duration(sec)*time.Second, most)
	}
	if at, err := http.ParseTime(s); err == nil {
		if date, err := http.ParseTime(h.Get("Date")); err == nil {
			now = date
		}
		return max(0, min(at.Sub(now), most))
	}
	return 0
}

// transportError returns the error for a request or a body that broke off
// with err. ctx is the caller's context, cause why the request was cancelled.
//
// The text of err is kept but not its identity: net/http's timeouts claim to
// be context.DeadlineExceeded, which is the caller's deadline alone.
func transportError(ctx context.Context, cause, err error) error {
	switch {
	case errors.Is(cause, fs.ErrClosed):
		return fs.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(cause, errStalled):
		return Temporary("%w", errStalled)
	}
	var untrusted *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	if errors.As(err, &untrusted) || errors.As(err, &plain) {
		return err // a matter of configuration
	}
	return Temporary("%v", err)
}

// Temporary returns an ErrTemporary.
func Temporary(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{fetcher.ErrTemporary}, args...)...)
}
