// SPDX-License-Identifier: Apache-2.0

package auth_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/auth"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "creds.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// helper puts a credential helper, a shell script, on PATH.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "docker-credential-"+name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

func TestLongestKeyWins(t *testing.T) {
	creds := auth.Static{
		"host":                         {Username: "host"},
		"host/a":                       {Username: "a"},
		"https://host/a/b/":            {Username: "b"},
		"host:5000":                    {Username: "port"},
		"https://index.docker.io/v1/":  {Username: "hub"},
		"registry-1.docker.io/private": {Username: "private"},
		"localhost/v2":                 {Username: "v2"},
	}
	for url, want := range map[string]string{
		"https://host/v2/x":                                "host",
		"https://host/v2/a":                                "a",
		"https://host/v2/a/x":                              "a",
		"https://host/v2/a/b":                              "b",
		"https://host/v2/a/b/c":                            "b",
		"https://host/v2/ab":                               "host",
		"https://host":                                     "host",
		"https://host/v2/":                                 "host",
		"http://host:5000/v2/a":                            "port",
		"https://hostile/v2/a":                             "",
		"https://registry-1.docker.io/v2/library/redis":    "hub",
		"https://docker.io/v2/library/redis":               "hub",
		"https://registry-1.docker.io/v2/private/app":      "private",
		"https://registry.hub.docker.com/v2/private/app":   "private",
		"http://localhost/v2/x":                            "v2",
		"https://host/v2/a/b?remote=https://index.docker.": "b",
	} {
		got, err := creds.Lookup(t.Context(), url)
		if got.Username != want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", url, got.Username, err, want)
		}
	}
	if _, err := creds.Lookup(t.Context(), "no url"); err == nil {
		t.Error("got no error for a URL without a host")
	}
}

func TestFile(t *testing.T) {
	path := write(t, `{"auths":{
		"h1":{"auth":"dXNlcjpwYTpzcw=="},
		"h1/repo":{"username":"user2","password":"pass2"},
		"h2":{"identitytoken":"refresh"},
		"h3":{}}}`)
	for url, want := range map[string]fetcher.Credential{
		"https://h1/v2/x":    {Username: "user", Password: "pa:ss"},
		"https://h1/v2/repo": {Username: "user2", Password: "pass2"},
		"https://h2/v2/x":    {IdentityToken: "refresh"},
		"https://h3/v2/x":    {},
		"https://h4/v2/x":    {},
	} {
		for name, store := range map[string]fetcher.Credentials{"cred.json": auth.File(path), "config.json": auth.Docker(path)} {
			if got, err := store.Lookup(t.Context(), url); got != want || err != nil {
				t.Errorf("%s in %s: got %+v, %v; want %+v", url, name, got, err, want)
			}
		}
	}
}

func TestFileIsReadAgain(t *testing.T) {
	path := write(t, `{"auths":{"h":{"username":"old","password":"p"}}}`)
	store := auth.File(path)
	for _, want := range []string{"old", "new"} {
		if got, err := store.Lookup(t.Context(), "https://h/v2/x"); got.Username != want || err != nil {
			t.Errorf("got %+v, %v; want %s", got, err, want)
		}
		if err := os.WriteFile(path, []byte(`{"auths":{"h":{"username":"new","password":"p"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMissingFileIsAnonymous(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	for _, store := range []fetcher.Credentials{auth.File(path), auth.Docker(path), auth.File(write(t, "\n"))} {
		if got, err := store.Lookup(t.Context(), "https://h/v2/x"); got != (fetcher.Credential{}) || err != nil {
			t.Errorf("%T: got %+v, %v", store, got, err)
		}
	}
}

func TestMalformedFileIsNamed(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":       `{"auths": {"h": {"password": "s3cr3t"`,
		"other type":    `{"auths": {"h": {"password": 53, "auth": "s3cr3t"}}}`,
		"array":         `["s3cr3t"]`,
		"auth no colon": `{"auths": {"h": {"auth": "czNjcjN0"}}}`,
		"auth rubbish":  `{"auths": {"h": {"auth": "s3cr3t!"}}}`,
		"too long":      `"` + strings.Repeat("s3cr3t", 1<<20) + `"`,
	} {
		path := write(t, text)
		for _, store := range []fetcher.Credentials{auth.File(path), auth.Docker(path)} {
			_, err := store.Lookup(t.Context(), "https://h/v2/x")
			if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("%s: got %v, want an error that names the file and shows no secret", name, err)
			}
		}
	}
}

func TestHelpers(t *testing.T) {
	helper(t, "test", `
read host
case "$1 $host" in
"get one") echo '{"ServerURL":"one","Username":"user","Secret":"pass"}' ;;
"get two") echo '{"Username":"<token>","Secret":"refresh"}' ;;
"get https://index.docker.io/v1/") echo '{"Username":"hub","Secret":"pass"}' ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
`)
	for name, text := range map[string]string{
		"store":   `{"credsStore":"test","auths":{"three":{"username":"file","password":"p"}}}`,
		"helpers": `{"credsStore":"absent","credHelpers":{"one":"test","two":"test","docker.io":"test","three":"test","four":"test"},"auths":{"three":{"username":"file","password":"p"}}}`,
	} {
		store := auth.Docker(write(t, text))
		for url, want := range map[string]fetcher.Credential{
			"https://one/v2/a/b":                            {Username: "user", Password: "pass"},
			"https://two/v2/a":                              {IdentityToken: "refresh"},
			"https://registry-1.docker.io/v2/library/redis": {Username: "hub", Password: "pass"},
			"https://three/v2/a":                            {Username: "file", Password: "p"},
			"https://four/v2/a":                             {},
		} {
			if got, err := store.Lookup(t.Context(), url); got != want || err != nil {
				t.Errorf("%s, %s: got %+v, %v; want %+v", name, url, got, err, want)
			}
		}
	}
}

func TestHelperThatFails(t *testing.T) {
	for name, script := range map[string]string{
		"exits":     "echo s3cr3t; exit 3",
		"malformed": `echo '{"Username":"u","Secret":"s3cr3t'`,
	} {
		t.Run(name, func(t *testing.T) {
			helper(t, "bad", script)
			_, err := auth.Docker(write(t, `{"credsStore":"bad"}`)).Lookup(t.Context(), "https://h/v2/x")
			if err == nil || !strings.Contains(err.Error(), "docker-credential-bad") || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("got %v, want an error that names the helper and shows no secret", err)
			}
		})
	}
	for _, name := range []string{"not-installed", "../bad"} {
		_, err := auth.Docker(write(t, `{"credsStore":"`+name+`"}`)).Lookup(t.Context(), "https://h/v2/x")
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error that names %s", err, name)
		}
	}
}

func TestHelperThatHangs(t *testing.T) {
	helper(t, "hangs", "sleep 600 & wait")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := auth.Docker(write(t, `{"credsStore":"hangs"}`)).Lookup(ctx, "https://h/v2/x")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want context.DeadlineExceeded", err)
	}
}

// failing is a source that always fails.
type failing struct{ err error }

func (f failing) Lookup(context.Context, string) (fetcher.Credential, error) {
	return fetcher.Credential{}, f.err
}

func TestChain(t *testing.T) {
	errBroken := errors.New("broken")
	one, two := auth.Static{"h": {Username: "one"}}, auth.Static{"h": {Username: "two"}, "g": {Username: "two"}}
	for _, c := range []struct {
		name  string
		chain auth.Chain
		url   string
		want  string
		err   error
	}{
		{"first found", auth.Chain{one, two}, "https://h/v2/x", "one", nil},
		{"second found", auth.Chain{one, two}, "https://g/v2/x", "two", nil},
		{"none found", auth.Chain{one, two}, "https://f/v2/x", "", nil},
		{"found after a failure", auth.Chain{failing{errBroken}, two}, "https://h/v2/x", "two", nil},
		{"failure and none found", auth.Chain{failing{errBroken}, two}, "https://f/v2/x", "", errBroken},
		{"empty", nil, "https://f/v2/x", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.chain.Lookup(t.Context(), c.url)
			if got.Username != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v; want %q, %v", got.Username, err, c.want, c.err)
			}
		})
	}
}
