// SPDX-License-Identifier: Apache-2.0

package fetchertest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

const tokenPath = "/token"

// authorized reports whether the request may see the object m stands for, and
// sets the challenge otherwise.
func (x *exchange) authorized(m []string) bool {
	switch x.r.opts.Auth {
	case Basic:
		if x.knows(x.req) {
			return true
		}
		x.w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		return false
	case Bearer:
		scope := "registry:catalog:*"
		if m != nil {
			scope = "repository:" + m[1] + ":pull"
		}
		token := strings.TrimPrefix(x.entry.Authorization, "Bearer ")
		x.r.mu.Lock()
		got, ok := x.r.tokens[token]
		x.r.mu.Unlock()
		if ok && got == scope {
			return true
		}
		x.w.Header().Set("WWW-Authenticate",
			fmt.Sprintf(`Bearer realm="%s%s",service="test registry",scope="%s"`, x.r.URL(), tokenPath, scope))
		return false
	case Anonymous:
	}
	return true
}

// knows reports whether req carries the user name and password.
func (x *exchange) knows(req *http.Request) bool {
	user, password, ok := req.BasicAuth()
	return ok && user == x.r.opts.Username && password == x.r.opts.Password
}

func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	x, ok := r.begin(Token, w, req)
	if !ok {
		return
	}
	_ = req.ParseForm()
	refresh := req.PostForm.Get("refresh_token")
	if r.opts.Username != "" && !x.knows(req) && (refresh == "" || refresh != r.opts.Password) {
		x.fail(http.StatusUnauthorized)
		return
	}
	r.mu.Lock()
	r.issued++
	token := fmt.Sprintf("token-%s%d", secret, r.issued)
	r.tokens[token] = req.Form.Get("scope")
	r.mu.Unlock()
	x.done(http.StatusOK)
	answer := map[string]any{"token": token}
	if r.opts.TokenTTL != 0 {
		answer["expires_in"] = int(r.opts.TokenTTL.Seconds())
	}
	_ = json.NewEncoder(w).Encode(answer)
}
