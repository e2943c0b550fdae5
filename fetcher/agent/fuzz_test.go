// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/http"
	"strings"
	"testing"
)

// FuzzURL wants every URL to arrive at the agent's host, whole, and below its
// path.
func FuzzURL(f *testing.F) {
	for _, rest := range []string{"/v2/r/blobs/sha256:ab?x=%2F&y", "/a%2Fb//c/../d", "/?", "", "/%zz", "//evil/x", "?q", "/a#c"} {
		f.Add(rest)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		for _, kind := range []Kind{Prefix, Mirror} {
			a, err := New(Options{Kind: kind, URL: "http://agent:1/key/"})
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://registry.example"+rest, http.NoBody)
			if err != nil || req.URL.Host != "registry.example" {
				return
			}
			whole := map[Kind]string{Prefix: "/key/" + req.URL.String(), Mirror: "/key" + req.URL.RequestURI()}
			if err := a.address(req); err != nil {
				continue
			}
			want, _, _ := strings.Cut(whole[kind], "#")
			if got := req.URL.RequestURI(); got != want || req.URL.Host != "agent:1" || req.Host != "agent:1" {
				t.Errorf("%s: sent %q to %s for %s, want %q", kind, got, req.URL.Host, req.Host, want)
			}
		}
	})
}
