// SPDX-License-Identifier: Apache-2.0

package shape

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

const tokenPath = "/token"

// tokens gives one to everyone who asks. It holds for the repository that it
// was asked for.
type tokens struct {
	mu    sync.Mutex        // guards given
	given map[string]string // from the Authorization header to the repository
}

// serve is the token service.
func (t *tokens) serve(w http.ResponseWriter, r *http.Request) {
	var repo string
	if parts := strings.Split(r.URL.Query().Get("scope"), ":"); len(parts) == 3 {
		repo = parts[1]
	}
	token := rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.given == nil {
		t.given = make(map[string]string)
	}
	t.given["Bearer "+token] = repo
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 300}) // the client will tell
}

// allow reports whether r carries a token for its repository.
func (t *tokens) allow(r *http.Request) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	repo, ok := t.given[r.Header.Get("Authorization")]
	return ok && repo == repository(r.URL.Path)
}

// challenge sends the client to the token service.
func challenge(w http.ResponseWriter, r *http.Request) {
	c := fmt.Sprintf("Bearer realm=%q,service=%q", "http://"+r.Host+tokenPath, r.Host)
	if repo := repository(r.URL.Path); repo != "" {
		c += fmt.Sprintf(",scope=%q", "repository:"+repo+":pull")
	}
	w.Header().Set("WWW-Authenticate", c)
	http.Error(w, "a token is wanted", http.StatusUnauthorized)
}

// repository returns the repository in a path of the registry's API, or "".
func repository(path string) string {
	path = strings.TrimPrefix(path, "/v2/")
	for _, kind := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if i := strings.LastIndex(path, kind); i > 0 {
			return path[:i]
		}
	}
	return ""
}
