// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
)

// authority signs certificates of 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := new(authority)
	der, key := a.sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, a.key = cert, key
	return a
}

// sign makes a certificate of what c says, signed by a or by itself.
func (a *authority) sign(t *testing.T, c *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.Subject = pkix.Name{CommonName: "test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// server returns a TLS configuration that wants certificates of a.
func (a *authority) server(t *testing.T) *tls.Config {
	t.Helper()
	der, key := a.sign(t, &x509.Certificate{})
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
	}
}

// hostsDir is a directory of hosts.toml files.
type hostsDir string

func (d hostsDir) write(t *testing.T, registry, name, text string) {
	t.Helper()
	dir := filepath.Join(string(d), registry)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// trust writes the authority's certificate as ca.crt.pem, and a client
// certificate as client.pem and key.pem.
func (d hostsDir) trust(t *testing.T, registry string, a *authority) {
	t.Helper()
	der, key := a.sign(t, &x509.Certificate{})
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem":     {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		"client.pem": {Type: "CERTIFICATE", Bytes: der},
		"key.pem":    {Type: "EC PRIVATE KEY", Bytes: private},
	} {
		d.write(t, registry, name, string(pem.EncodeToMemory(block)))
	}
}

// at returns ref moved to another registry.
func at(ref fetcher.Ref, origin string) fetcher.Ref {
	_, rest, _ := strings.Cut(ref.URL, "/v2/")
	ref.URL = origin + "/v2/" + rest
	return ref
}

// openMirrored opens ref as a whole tower does.
func openMirrored(t *testing.T, opts registry.Options, ref fetcher.Ref) fetcher.Blob {
	t.Helper()
	o := newOpener(t, opts)
	return fetchertest.Open(t, mirror.New(o, o, mirror.Options{}), ref)
}

func TestMirrorWithTLS(t *testing.T) {
	ca := newAuthority(t)
	reg := fetchertest.NewRegistry(t, fetchertest.Options{
		TLS: ca.server(t), Auth: fetchertest.Bearer, Username: "u", Password: "pa55word", Redirect: true,
	})
	dir := hostsDir(t.TempDir())
	dir.trust(t, "registry.example", ca)
	dir.write(t, "registry.example", "hosts.toml", fmt.Sprintf(`
server = "https://registry.example"
[host."%s"]
capabilities = ["pull"]
ca = "ca.pem"
client = [["client.pem", "key.pem"]]
[host."%s".header]
X-Test = "yes"
`, reg.URL(), reg.URL()))
	content := fetchertest.Content(5000, 1)
	b := openMirrored(t, registry.Options{HostsDir: string(dir), Credentials: static{Username: "u", Password: "pa55word"}},
		at(reg.AddBlob(repo, content), "https://registry.example"))
	fetchertest.Want(t, b, content, 100, 1000)
	if err := os.RemoveAll(string(dir)); err != nil {
		t.Fatal(err)
	}
	reg.ResetLog()
	fetchertest.Want(t, b, content, 2000, 1000) // the directory is not looked at any more
	if got := endpoints(reg.Log()); got != "storage" {
		t.Errorf("warm read: got requests %q", got)
	}
}

func TestMirrorIsToldNamespaceAndHeader(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{Redirect: true})
	dir := hostsDir(t.TempDir())
	dir.write(t, "docker.io", "hosts.toml", fmt.Sprintf("[host.%q.header]\nX-Test = \"yes\"\n", reg.URL()))
	content := fetchertest.Content(5000, 1)
	for _, origin := range []string{"https://docker.io", "https://registry-1.docker.io"} {
		reg.ResetLog()
		b := openMirrored(t, registry.Options{HostsDir: string(dir)}, at(reg.AddBlob(repo, content), origin))
		fetchertest.Want(t, b, content, 0, 10)
		log := reg.Log()
		if q := log[0]; q.Query.Get("ns") != "docker.io" || q.Header["X-Test"][0] != "yes" {
			t.Errorf("%s: mirror was asked %v with %v", origin, q.Query, q.Header)
		}
		if q := log[1]; q.Query.Get("ns") != "" || len(q.Header["X-Test"]) > 0 {
			t.Errorf("%s: redirect host was asked %v with %v", origin, q.Query, q.Header)
		}
	}
}

func TestTLSIsVerified(t *testing.T) {
	ca := newAuthority(t)
	reg := fetchertest.NewRegistry(t, fetchertest.Options{TLS: ca.server(t)})
	for name, c := range map[string]struct {
		toml      string
		ok        bool
		permanent bool
	}{
		"trusted":               {"ca = \"ca.pem\"\nclient = [[\"client.pem\", \"key.pem\"]]", true, false},
		"not verified":          {"skip_verify = true\nclient = [[\"client.pem\", \"key.pem\"]]", true, false},
		"unknown authority":     {"skip_verify = false\nclient = [[\"client.pem\", \"key.pem\"]]", false, true},
		"no client certificate": {"ca = \"ca.pem\"", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := hostsDir(t.TempDir())
			dir.trust(t, "registry.example", ca)
			dir.write(t, "registry.example", "hosts.toml", fmt.Sprintf("server = %q\n%s\n", reg.URL(), c.toml))
			content := fetchertest.Content(5000, 1)
			ref := at(reg.AddBlob(repo, content), "https://registry.example")
			b := fetchertest.Open(t, newOpener(t, registry.Options{HostsDir: string(dir)}), ref)
			if c.ok {
				fetchertest.Want(t, b, content, 0, 10)
				return
			}
			err := readErr(t, b)
			if err == nil || c.permanent && errors.Is(err, fetcher.ErrTemporary) {
				t.Errorf("got %v, want a permanent error: %v", err, c.permanent)
			}
		})
	}
}

func TestOverridePath(t *testing.T) {
	reg := fetchertest.NewRegistry(t, fetchertest.Options{})
	dir := hostsDir(t.TempDir())
	dir.write(t, "registry.example", "hosts.toml", fmt.Sprintf("[host.%q]\noverride_path = true\n", reg.URL()+"/v2/proxy"))
	content := fetchertest.Content(5000, 1)
	ref := reg.AddBlob("proxy/"+repo, content)
	ref.URL = strings.Replace(ref.URL, "/proxy/", "/", 1)
	fetchertest.Want(t, openMirrored(t, registry.Options{HostsDir: string(dir)}, at(ref, "https://registry.example")), content, 0, 10)
}

func TestMirrorDownMeansOrigin(t *testing.T) {
	down, reg := fetchertest.NewRegistry(t, fetchertest.Options{}), fetchertest.NewRegistry(t, fetchertest.Options{})
	down.SetDown(true)
	dir := hostsDir(t.TempDir())
	dir.write(t, "registry.example", "hosts.toml", fmt.Sprintf("server = %q\n[host.%q]\n", reg.URL(), down.URL()))
	content := fetchertest.Content(5000, 1)
	fetchertest.Want(t, openMirrored(t, registry.Options{HostsDir: string(dir)}, at(reg.AddBlob(repo, content), "https://registry.example")), content, 0, 10)
}

func TestHostsAreReadAgainWhenChanged(t *testing.T) {
	one, two := fetchertest.NewRegistry(t, fetchertest.Options{}), fetchertest.NewRegistry(t, fetchertest.Options{})
	dir := hostsDir(t.TempDir())
	o := newOpener(t, registry.Options{HostsDir: string(dir)})
	content := fetchertest.Content(5000, 1)
	for _, reg := range []*fetchertest.Registry{one, two} {
		dir.write(t, "registry.example", "hosts.toml", fmt.Sprintf("server = %q\n", reg.URL()))
		fetchertest.Want(t, fetchertest.Open(t, o, at(reg.AddBlob(repo, content), "https://registry.example")), content, 0, 10)
	}
	if len(one.Log()) != 1 || len(two.Log()) != 1 {
		t.Errorf("got %d and %d requests, want 1 and 1", len(one.Log()), len(two.Log()))
	}
}

// TestLocalhost reads https URLs of a registry on localhost that speaks plain
// HTTP: containerd falls back to it there.
func TestLocalhost(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			reg := fetchertest.NewRegistry(t, m.opts)
			content := fetchertest.Content(5000, 1)
			o := newOpener(t, registry.Options{Credentials: m.cred})
			b := fetchertest.Open(t, o, at(reg.AddBlob(repo, content), "https://"+reg.Host()))
			fetchertest.Want(t, b, content, 0, 10)
			reg.ResetLog()
			fetchertest.Want(t, b, content, 1000, 10)
			if n := len(reg.Log()); n != 1 {
				t.Errorf("a warm read took %d requests", n)
			}
		})
	}
}

func TestRedirectToPlainHTTPIsRefused(t *testing.T) {
	ca := newAuthority(t)
	conf := ca.server(t)
	conf.ClientAuth = tls.NoClientCert
	reg := fetchertest.NewRegistry(t, fetchertest.Options{TLS: conf})
	plain := fetchertest.NewRegistry(t, fetchertest.Options{})
	dir := hostsDir(t.TempDir())
	dir.trust(t, "registry.example", ca)
	dir.write(t, "registry.example", "hosts.toml", fmt.Sprintf("server = %q\nca = \"ca.pem\"\n", reg.URL()))
	content := fetchertest.Content(2000, 1)
	ref := reg.AddBlob(repo, content)
	reg.Fault(fetchertest.Fault{Status: 307, Location: plain.AddBlob(repo, content).URL + "?Signature=s3cr3t", Times: -1})
	err := readErr(t, fetchertest.Open(t, newOpener(t, registry.Options{HostsDir: string(dir)}), at(ref, "https://registry.example")))
	if err == nil || len(plain.Log()) != 0 {
		t.Errorf("got %v and %d plain requests", err, len(plain.Log()))
	}
}
