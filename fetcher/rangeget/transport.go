// SPDX-License-Identifier: Apache-2.0

package rangeget

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Tune adapts t, made for whole files, to many small reads. A connection must
// stand within dialTimeout.
func Tune(t *http.Transport, dialTimeout time.Duration) {
	// HTTP/1.1 as in containerd: every read has a connection of its own, so a
	// lost packet or a cancelled read disturbs no other.
	t.ForceAttemptHTTP2 = false
	t.MaxIdleConns = 0
	t.MaxIdleConnsPerHost = 128 // as many as may be in flight to one host, lest each wave has to dial anew
	t.IdleConnTimeout = 90 * time.Second
	t.DisableCompression = true
	t.MaxResponseHeaderBytes = 64 << 10 // bytes; challenges and signed URLs take less than 8 KiB
	t.ResponseHeaderTimeout = 0         // watched per request, with the dial
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return dial(ctx, network, addr)
	}
}
