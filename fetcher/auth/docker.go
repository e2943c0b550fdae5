// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"

	"github.com/overlaybd-go/overlaybd/fetcher"
)

// A DockerStore is a docker config.json and the credential helpers it names.
// Like cred.json it is read at every Lookup.
type DockerStore struct{ path string }

var _ fetcher.Credentials = (*DockerStore)(nil)

// Docker returns the credentials of the docker config.json at path. A missing
// file means anonymous access.
func Docker(path string) *DockerStore { return &DockerStore{path} }

// dockerConfig is what matters here of a config.json.
type dockerConfig struct {
	Auths   map[string]entry  `json:"auths"`
	Store   string            `json:"credsStore"`
	Helpers map[string]string `json:"credHelpers"`
}

// Lookup asks the helper that credHelpers names for the host, else the one of
// credsStore, and looks among auths where there is none or it knows nothing.
func (d *DockerStore) Lookup(ctx context.Context, rawURL string) (fetcher.Credential, error) {
	var c dockerConfig
	if err := load(d.path, &c); err != nil {
		return fetcher.Credential{}, err
	}
	helper, ok, err := match(c.Helpers, rawURL)
	if err != nil {
		return fetcher.Credential{}, err
	}
	if !ok {
		helper = c.Store
	}
	if helper != "" {
		cred, err := ask(ctx, helper, rawURL)
		if err != nil || cred != (fetcher.Credential{}) {
			return cred, err
		}
	}
	return lookup(c.Auths, rawURL, d.path)
}

// ask asks a credential helper. Helpers know hosts only.
func ask(ctx context.Context, helper, rawURL string) (fetcher.Credential, error) {
	name, err := repository(rawURL)
	if err != nil {
		return fetcher.Credential{}, err
	}
	if strings.ContainsAny(helper, `/\`) {
		return fetcher.Credential{}, fmt.Errorf("credential helper %q: no program name", helper)
	}
	host, _, _ := strings.Cut(name, "/")
	if host == "docker.io" {
		host = "https://index.docker.io/v1/" // what docker login stores it under
	}
	p := &program{ctx: ctx, name: "docker-credential-" + helper}
	got, err := client.Get(p.start, host)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return fetcher.Credential{}, nil
	case err != nil:
		// The client's error quotes what the helper printed, which may be
		// the secret.
		return fetcher.Credential{}, fmt.Errorf("ask %s for %s: %w", p.name, host, p.reason())
	case got.Username == "<token>":
		return fetcher.Credential{IdentityToken: got.Secret}, nil
	}
	return fetcher.Credential{Username: got.Username, Password: got.Secret}, nil
}

// helperTimeout is how long a helper may take. Those of clouds ask a metadata
// service, in up to a second or two.
const helperTimeout = 20 * time.Second

// program is a run of a credential helper.
type program struct {
	ctx   context.Context
	name  string
	args  []string
	input io.Reader
	err   error
}

var _ client.Program = (*program)(nil)

// start is a client.ProgramFunc.
func (p *program) start(args ...string) client.Program {
	p.args = args
	return p
}

// Input sets what the helper reads.
func (p *program) Input(in io.Reader) { p.input = in }

// Output runs the helper and returns what it printed.
func (p *program) Output() ([]byte, error) {
	ctx, cancel := context.WithTimeout(p.ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.name, p.args...)
	cmd.Stdin = p.input
	// A group of its own, so that a script's children end with it; one that
	// left the group and keeps the pipe open does not hold us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out := &capped{left: maxFile}
	cmd.Stdout = out
	p.err = cmd.Run()
	switch {
	case p.ctx.Err() != nil:
		p.err = p.ctx.Err()
	case ctx.Err() != nil: // ours, which is not to look like the caller's
		p.err = fmt.Errorf("no answer in %v", helperTimeout)
	}
	return out.buf.Bytes(), p.err
}

// reason returns why the helper failed.
func (p *program) reason() error {
	if p.err != nil {
		return p.err
	}
	return errors.New("its answer is malformed")
}

// capped keeps the first bytes written to it.
type capped struct {
	buf  bytes.Buffer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.buf.Write(p[:n])
	c.left -= n
	return len(p), nil
}
