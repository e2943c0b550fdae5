// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A FileStore is a cred.json. It is read at every Lookup, which happens once
// per token, so a change takes effect without a restart.
type FileStore struct{ path string }

var _ fetcher.Credentials = (*FileStore)(nil)

// File returns the credentials of the cred.json at path: an object with
// "auths" by key. A missing file means anonymous access.
func File(path string) *FileStore { return &FileStore{path} }

// Lookup returns the credential with the longest matching key.
func (f *FileStore) Lookup(_ context.Context, rawURL string) (fetcher.Credential, error) {
	var c struct {
		Auths map[string]entry `json:"auths"`
	}
	if err := load(f.path, &c); err != nil {
		return fetcher.Credential{}, err
	}
	return lookup(c.Auths, rawURL, f.path)
}

// lookup returns the credential of the best of entries, which come from path.
func lookup(entries map[string]entry, rawURL, path string) (fetcher.Credential, error) {
	e, ok, err := match(entries, rawURL)
	if err != nil || !ok {
		return fetcher.Credential{}, err
	}
	cred, err := e.credential()
	if err != nil {
		return fetcher.Credential{}, fmt.Errorf("credential for %s in %s: %w", rawURL, path, err)
	}
	return cred, nil
}

// entry is one of the "auths" of docker's config.json and of cred.json.
type entry struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

func (e entry) credential() (fetcher.Credential, error) {
	c := fetcher.Credential{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken}
	if e.Auth == "" || e.Username != "" {
		return c, nil
	}
	text, err := base64.StdEncoding.DecodeString(e.Auth)
	if err != nil {
		return fetcher.Credential{}, errors.New(`"auth" is not base64`)
	}
	user, password, ok := strings.Cut(string(text), ":")
	if !ok {
		return fetcher.Credential{}, errors.New(`"auth" is not base64 of user:password`)
	}
	// Docker pads the decoded text with NUL bytes in some old files.
	c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	return c, nil
}

// maxFile bounds the files read here: 4 MiB are some ten thousand entries.
const maxFile = 4 << 20

// load decodes the JSON file at path into v. A missing or empty file leaves v
// as it is. Errors show no content, which is secret.
func load(path string, v any) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read credentials: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("read credentials: %w", err)
	}
	if err := decode(text, v); err != nil {
		return fmt.Errorf("read credentials: %s is malformed: %w", path, err)
	}
	return nil
}

func decode(text []byte, v any) error {
	if len(text) > maxFile {
		return fmt.Errorf("it is longer than %d bytes", maxFile)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, v); err != nil {
		return where(err)
	}
	return nil
}

// where says what is wrong with a JSON text without quoting it.
func where(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("no JSON at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Errorf("%q at byte %d is a %s", kind.Field, kind.Offset, strings.Fields(kind.Value)[0])
	}
	return errors.New("no JSON object")
}
