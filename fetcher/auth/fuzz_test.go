// SPDX-License-Identifier: Apache-2.0

package auth

import "testing"

// FuzzConfig wants any file and any URL to yield a credential or an error.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}},"credsStore":"x","credHelpers":{"h":"y"}}`,
		`{"auths":{"h/a":{"username":"u","password":"p"},"":{}}}`,
		`{"auths":null}`, `[]`, `{"auths":{"h":{"auth":"Og=="}}}`,
	} {
		f.Add([]byte(text), "https://h/v2/a/b")
	}
	f.Fuzz(func(t *testing.T, text []byte, url string) {
		var c dockerConfig
		if decode(text, &c) != nil {
			return
		}
		cred, err := lookup(c.Auths, url, "file")
		if err == nil && cred.Username != "" && len(c.Auths) == 0 {
			t.Errorf("credential %q out of nowhere", cred.Username)
		}
		_, _, _ = match(c.Helpers, url)
	})
}
