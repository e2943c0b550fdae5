// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

func basic(c fetcher.Credential) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// token fetches a bearer token from the service the challenge names.
func (o *Opener) token(ctx context.Context, h *host, c auth.Challenge, cred fetcher.Credential) (grant, error) {
	req, err := tokenRequest(ctx, h, c, cred)
	if err != nil {
		return grant{}, err
	}
	asked := time.Now()
	a, err := o.askToken(ctx, h, req)
	if err != nil {
		return grant{}, fmt.Errorf("get token from %s: %w", req.URL.Host, err)
	}
	defer a.Discard()
	if a.StatusCode != http.StatusOK {
		return grant{}, fmt.Errorf("get token from %s: %w", req.URL.Host, tokenError(a.Response))
	}
	// 256 KiB: tokens with long scope lists reach some 10 KiB.
	const most = 256 << 10
	text, err := io.ReadAll(io.LimitReader(a.Body, most+1))
	if err != nil {
		return grant{}, fmt.Errorf("get token from %s: %w", req.URL.Host, err)
	}
	g, err := parseToken(text, asked)
	if len(text) > most {
		err = fmt.Errorf("it is longer than %d bytes", most)
	}
	if err != nil {
		return grant{}, rangeget.Temporary("token answer of %s: %w", req.URL.Host, err)
	}
	return g, nil
}

// tokenError is the error of a token service that gave no token. Some answer
// 400 to credentials they do not like.
func tokenError(r *http.Response) error {
	if r.StatusCode == http.StatusBadRequest || r.StatusCode == http.StatusNotFound {
		return fmt.Errorf("%w: it answered %d %s", fetcher.ErrUnauthorized, r.StatusCode, http.StatusText(r.StatusCode))
	}
	return rangeget.StatusError(r)
}

// tokenRequest returns a GET with the user name and password, or the OAuth2
// POST where there is an identity token instead.
func tokenRequest(ctx context.Context, h *host, c auth.Challenge, cred fetcher.Credential) (*http.Request, error) {
	realm, err := url.Parse(c.Parameters["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		return nil, errors.New("the bearer challenge names no token service")
	}
	if realm.Scheme == "http" && h.base.Scheme == "https" && cred != (fetcher.Credential{}) && !docker.IsLocalhost(realm.Host) {
		return nil, fmt.Errorf("the token service %s of an https registry is plain http: not sending it the credential", realm.Host)
	}
	q := realm.Query()
	for _, name := range []string{"service", "scope"} {
		if v := c.Parameters[name]; v != "" {
			q.Set(name, v)
		}
	}
	if scopes := strings.Fields(c.Parameters["scope"]); len(scopes) > 1 {
		q["scope"] = scopes
	}
	if cred.IdentityToken == "" {
		realm.RawQuery = q.Encode()
		req, err := newRequest(ctx, http.MethodGet, realm, h.header)
		if err == nil && (cred.Username != "" || cred.Password != "") {
			req.Header.Set("Authorization", basic(cred))
		}
		return req, err
	}
	form := url.Values{
		"grant_type":    {"refresh_token"},
		"refresh_token": {cred.IdentityToken},
		"client_id":     {"overlaybd"},
		"service":       {c.Parameters["service"]},
		"scope":         {c.Parameters["scope"]},
	}
	req, err := newRequest(ctx, http.MethodPost, realm, h.header)
	if err == nil {
		text := []byte(form.Encode())
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.ContentLength = int64(len(text))
		req.Body = io.NopCloser(bytes.NewReader(text))
	}
	return req, err
}

// newRequest returns a request with the headers of hosts.toml. Its error does
// not show the URL.
func newRequest(ctx context.Context, method string, u *url.URL, header http.Header) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://host/", http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("make request to %s: %w", u.Host, err)
	}
	v := *u
	req.URL, req.Host = &v, u.Host
	for name, values := range header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	return req, nil
}

// askToken sends req to the host's token service and follows its redirects. A
// POST, which carries a secret in its body, is not redirected.
func (o *Opener) askToken(ctx context.Context, h *host, req *http.Request) (*rangeget.Answer, error) {
	for hops := 0; ; hops++ {
		a, err := o.do(ctx, o.life, h, req)
		if err != nil || req.Method != http.MethodGet || !a.Redirects() {
			return a, err
		}
		a.Discard()
		u, err := a.Target(hops)
		if err != nil {
			return nil, err
		}
		next := req.Clone(ctx)
		next.URL, next.Host = u, u.Host
		if !rangeget.SameHost(u, req.URL) {
			next.Header.Del("Authorization")
		}
		req = next
	}
}

// parseToken returns the grant in the answer of a token service that was
// asked at a time.
func parseToken(text []byte, asked time.Time) (grant, error) {
	var t struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"` // seconds
	}
	if err := json.Unmarshal(text, &t); err != nil {
		return grant{}, errors.New("it is not a JSON object with a token")
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsAny(t.Token, "\r\n\x00") {
		return grant{}, errors.New("there is no token in it")
	}
	// 60 s is what the token specification says where expires_in is missing;
	// a day keeps the arithmetic far from overflow.
	life := 60 * time.Second
	if t.ExpiresIn > 0 {
		life = time.Duration(min(t.ExpiresIn, 24*3600) * float64(time.Second))
	}
	// Renewed at three quarters of its life and dropped at nine tenths: a
	// read never waits for a token in steady use, nor is one refused because
	// it expired on the way.
	return grant{
		header: "Bearer " + t.Token,
		renew:  asked.Add(life * 3 / 4),
		expire: asked.Add(life * 9 / 10),
	}, nil
}
