// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// tlsConfig returns what the flags about certificates amount to, nil if there
// are none.
func tlsConfig(insecure bool, dirs, roots, clients []string) (*tls.Config, error) {
	if !insecure && len(dirs)+len(roots)+len(clients) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{RootCAs: pool, InsecureSkipVerify: insecure}
	for _, dir := range dirs {
		inDir, pairs, err := certificates(dir)
		if err != nil {
			return nil, err
		}
		roots, clients = append(roots, inDir...), append(clients, pairs...)
	}
	for _, name := range roots {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate", name)
		}
	}
	for _, pair := range clients {
		cert, key, ok := strings.Cut(pair, ":")
		if !ok {
			return nil, usage("--client-cert %s: want CERT:KEY", pair)
		}
		loaded, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		c.Certificates = append(c.Certificates, loaded)
	}
	return c, nil
}

// certificates returns the roots (*.crt) of a directory, and the pairs of
// *.cert and *.key.
func certificates(dir string) (roots, pairs []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch filepath.Ext(name) {
		case ".crt":
			roots = append(roots, name)
		case ".cert":
			pairs = append(pairs, name+":"+strings.TrimSuffix(name, ".cert")+".key")
		}
	}
	return roots, pairs, nil
}
