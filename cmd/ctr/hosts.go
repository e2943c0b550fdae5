// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/httpdbg"
	"github.com/urfave/cli/v3"
	"golang.org/x/term"
)

// registryHosts returns the hosts of registries as the flags of containerd's
// ctr have them, with their connections and tokens shared by all requests,
// where ctr begins anew for each object. Their transports are given to over.
func registryHosts(ctx context.Context, cmd *cli.Command, over func(http.RoundTripper) http.RoundTripper) (docker.RegistryHosts, error) {
	user, secret, err := credential(cmd)
	if err != nil {
		return nil, err
	}
	opts := config.HostOptions{
		Credentials: func(string) (string, string, error) { return user, secret, nil },
		UpdateClient: func(c *http.Client) error {
			if cmd.Bool("http-dump") {
				httpdbg.DumpRequests(ctx, c, nil)
			}
			c.Transport = over(c.Transport)
			return nil
		},
	}
	if cmd.Bool("plain-http") {
		opts.DefaultScheme = "http"
	}
	if dir := cmd.String("hosts-dir"); dir != "" {
		opts.HostDir = config.HostDirFromRoot(dir)
	}
	if opts.DefaultTLS, err = tlsConfig(cmd); err != nil {
		return nil, err
	}
	return shared(config.ConfigureHosts(ctx, opts)), nil
}

// shared returns hosts that are the same whenever they are asked for.
func shared(hosts docker.RegistryHosts) docker.RegistryHosts {
	var mu sync.Mutex
	known := make(map[string][]docker.RegistryHost)
	return func(name string) ([]docker.RegistryHost, error) {
		mu.Lock()
		defer mu.Unlock()
		if all, ok := known[name]; ok {
			return all, nil
		}
		all, err := hosts(name)
		if err == nil {
			known[name] = all
		}
		return all, err
	}
}

// credential returns what --user or --refresh gives. A password that is not
// there is asked for.
func credential(cmd *cli.Command) (user, secret string, err error) {
	user, secret, _ = strings.Cut(cmd.String("user"), ":")
	switch {
	case user == "":
		return "", cmd.String("refresh"), nil
	case secret != "":
		return user, secret, nil
	}
	w := cmd.Root().Writer
	_, _ = io.WriteString(w, "Password: ") // it is typed blindly, in case
	text, err := term.ReadPassword(int(os.Stdin.Fd()))
	_, _ = io.WriteString(w, "\n")
	if err != nil {
		return "", "", fmt.Errorf("read password: %w", err)
	}
	return user, string(text), nil
}

// tlsConfig returns what the flags about certificates amount to, nil if there
// are none.
func tlsConfig(cmd *cli.Command) (*tls.Config, error) {
	c := &tls.Config{InsecureSkipVerify: cmd.Bool("skip-verify")}
	if name := cmd.String("tlscacert"); name != "" {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate", name)
		}
	}
	cert, key := cmd.String("tlscert"), cmd.String("tlskey")
	if (cert == "") != (key == "") {
		return nil, errors.New("flags --tlscert and --tlskey must be set together")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if !c.InsecureSkipVerify && c.RootCAs == nil && c.Certificates == nil {
		return nil, nil // ambiguous schemes are tried by TLS first where there is one
	}
	return c, nil
}
