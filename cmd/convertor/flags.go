// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"fmt"
	"runtime"
	"strings"

	"github.com/containerd/platforms"
	"github.com/spf13/pflag"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/image/convert/store"
	"github.com/overlaybd-go/overlaybd/image/zfile"
)

// flags are the command line. The names are those of the reference
// implementation, where it has the flag.
type flags struct {
	source, target                       string
	repository, inTag, inDigest          string
	outTag, outOverlaybd                 string
	turboOCI, fastOCI, fsType            string
	username, dir, hostsDir              string
	platform                             []string
	oci, mkfs, referrer, flatten         bool
	vsize, blockSize, jobs, concurrency  int
	baseLayer, algorithm, dbStr, dbType  string
	plain, insecure, verbose, json       bool
	certDirs, rootCAs, clientCerts       []string
	noUpload, dump, reserve, appendsOnly bool
}

func (f *flags) register(s *pflag.FlagSet) {
	s.StringVar(&f.source, "source", "", "image to convert")
	s.StringVar(&f.target, "target", "", "image to write")
	s.StringVarP(&f.repository, "repository", "r", "", "HOST/REPOSITORY of both")
	s.StringVarP(&f.inTag, "input-tag", "i", "", "tag of the image to convert")
	s.StringVarP(&f.inDigest, "input-digest", "g", "", "its digest, if it has no tag")
	s.StringVarP(&f.outTag, "output-tag", "o", "", "tag of the image to write")
	s.StringVar(&f.outOverlaybd, "overlaybd", "", "the same")
	s.StringSliceVar(&f.platform, "platform", nil, "convert these platforms of an index, such as linux/arm64 (default all)")
	s.BoolVar(&f.oci, "oci", false, "write OCI media types (default those of the source)")
	s.BoolVar(&f.referrer, "referrer", false, "refer to the source, as artifacts do; implies --oci")
	s.BoolVar(&f.flatten, "flatten", false, "merge all layers into one")
	s.BoolVar(&f.mkfs, "mkfs", true, "make a file system in the bottom layer; if false, put --base-layer below it")
	s.StringVar(&f.baseLayer, "base-layer", "/opt/overlaybd/baselayers/ext4_64", "block layer with a file system")
	s.IntVar(&f.vsize, "vsize", 64, "size of the disk in GiB, with --mkfs")
	s.StringVar(&f.algorithm, "algorithm", "lz4", "compression, lz4 or zstd")
	s.IntVar(&f.blockSize, "bs", 4, "compressed block in KiB: 4, 8, 16, 32 or 64")
	s.IntVar(&f.jobs, "jobs", runtime.GOMAXPROCS(0), "threads that compress")
	s.IntVar(&f.concurrency, "concurrency-limit", 4, "manifests converted at a time; 0 for no limit")
	s.StringVar(&f.dbStr, "db-str", "", "deduplication database: a file, or of mysql USER:PASSWORD@tcp(HOST:PORT)/NAME (default none)")
	s.StringVar(&f.dbType, "db-type", "sqlite", "sqlite or mysql")
	s.StringVarP(&f.username, "username", "u", "", "USER:PASSWORD (default as docker login has it)")
	s.BoolVar(&f.plain, "plain", false, "speak HTTP to registries (default only to those of this machine)")
	s.BoolVar(&f.insecure, "insecure", false, "do not verify the certificates of registries")
	s.StringSliceVar(&f.certDirs, "cert-dir", nil, "directory with *.crt roots, and *.cert and *.key of clients")
	s.StringSliceVar(&f.rootCAs, "root-ca", nil, "file with certificates to trust besides the system's")
	s.StringSliceVar(&f.clientCerts, "client-cert", nil, "CERT:KEY files to be known by")
	s.StringVar(&f.hostsDir, "hosts-dir", "", "registry configuration, as containerd's config_path")
	s.StringVarP(&f.dir, "dir", "d", "tmp_conv", "work directory; what is in it at the end is --dump-manifest's")
	s.BoolVar(&f.noUpload, "no-upload", false, "convert, and write nothing to the target")
	s.BoolVar(&f.dump, "dump-manifest", false, "write indexes, manifests and configs to the work directory, too")
	s.BoolVar(&f.json, "json", false, "print the result as JSON")
	s.BoolVar(&f.verbose, "verbose", false, "log more")
	f.registerOld(s)
}

// registerOld registers flags of the reference that have no use here, for
// scripts that name them.
func (f *flags) registerOld(s *pflag.FlagSet) {
	s.StringVar(&f.turboOCI, "turboOCI", "", "")
	s.StringVar(&f.fastOCI, "fastoci", "", "")
	s.StringVar(&f.fsType, "fstype", "ext4", "")
	s.BoolVar(&f.reserve, "reserve", false, "")
	s.BoolVar(&f.appendsOnly, "disable-sparse", false, "")
	for _, name := range []string{"turboOCI", "fastoci", "fstype", "reserve", "disable-sparse"} {
		s.Lookup(name).Hidden = true
	}
}

// settings are what the flags amount to.
type settings struct {
	flags
	from, to    store.Ref // to is empty with --no-upload
	platforms   platforms.Matcher
	compression zfile.Options
	tls         *tls.Config
	credential  fetcher.Credential
}

func (f *flags) settings() (*settings, error) {
	s := &settings{flags: *f}
	for _, step := range []func() error{s.checkOld, s.readRefs, s.readNumbers, s.readPlatforms, s.readDB, s.readLogin} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *settings) checkOld() error {
	if s.turboOCI != "" || s.fastOCI != "" {
		return usage("TurboOCI images cannot be made yet")
	}
	if s.fsType != "ext4" {
		return usage("--fstype %s: layers are ext4", s.fsType)
	}
	return nil
}

// readRefs finds the source and the target.
func (s *settings) readRefs() (err error) {
	if s.repository != "" {
		if s.source != "" || s.target != "" {
			return usage("-r is the short form of --source and --target: give one of them")
		}
		if err := s.expand(); err != nil {
			return err
		}
	}
	if s.source == "" {
		return usage("name an image: --source and --target, or -r with -i and -o")
	}
	if s.from, err = store.ParseRef(s.source); err != nil {
		return usage("%w", err)
	}
	if s.target == "" && s.noUpload {
		return nil
	}
	if s.target == "" {
		return usage("name the image to write: --target, or -o")
	}
	if s.to, err = store.ParseRef(s.target); err != nil {
		return usage("%w", err)
	}
	switch {
	case s.to == s.from:
		return usage("the target is the source: %s", s.to)
	case s.to.Kind == store.DockerArchive:
		return usage("a docker-archive cannot be written: it has no place for the annotations of block layers; use oci-archive")
	}
	return nil
}

// expand turns -r, -i, -g and -o into --source and --target.
func (s *settings) expand() error {
	out := s.outOverlaybd
	if out == "" {
		out = s.outTag
	}
	switch {
	case s.inTag != "":
		s.source = "docker://" + s.repository + ":" + s.inTag
	case s.inDigest != "":
		s.source = "docker://" + s.repository + "@" + s.inDigest
	default:
		return usage("name the image to convert: -i TAG or -g DIGEST")
	}
	if out != "" {
		s.target = "docker://" + s.repository + ":" + out
	}
	return nil
}

func (s *settings) readNumbers() error {
	switch s.blockSize {
	case 4, 8, 16, 32, 64:
	default:
		return usage("--bs %d: want 4, 8, 16, 32 or 64", s.blockSize)
	}
	// 1 << 20 GiB is what 32-bit block numbers of 256 KiB would take, and far
	// beyond what ext4 of 4 KiB blocks is used for.
	if s.vsize < 1 || s.vsize > 1<<14 {
		return usage("--vsize %d: want 1 to %d GiB", s.vsize, 1<<14)
	}
	if s.jobs < 1 || s.jobs > 256 {
		return usage("--jobs %d: want 1 to 256", s.jobs)
	}
	if s.concurrency < 0 {
		return usage("--concurrency-limit %d is negative", s.concurrency)
	}
	algorithm, err := zfile.ParseAlgorithm(s.algorithm)
	if err != nil {
		return usage("--algorithm: %w", err)
	}
	s.compression = zfile.Options{Algorithm: algorithm, BlockSize: s.blockSize << 10, Workers: s.jobs}
	return nil
}

func (s *settings) readPlatforms() error {
	if len(s.platform) == 0 {
		return nil
	}
	all, err := platforms.ParseAll(s.platform)
	if err != nil {
		return usage("--platform: %w", err)
	}
	s.platforms = platforms.Any(all...)
	return nil
}

func (s *settings) readDB() error {
	switch {
	case s.dbType != "sqlite" && s.dbType != "mysql":
		return usage("--db-type %q: want sqlite or mysql", s.dbType)
	case s.dbStr != "" && s.to.Kind != store.Registry && !s.noUpload:
		return usage("--db-str finds layers in registries, which %s is not in", s.to)
	}
	return nil
}

func (s *settings) readLogin() (err error) {
	if s.username != "" {
		user, password, ok := strings.Cut(s.username, ":")
		if !ok {
			return usage("-u: want USER:PASSWORD")
		}
		if a, b := s.from.Host(), s.to.Host(); a != "" && b != "" && a != b {
			return usage("-u: it is not clear whether it is for %s or %s; use docker login", a, b)
		}
		s.credential = fetcher.Credential{Username: user, Password: password}
	}
	if s.tls, err = tlsConfig(s.insecure, s.certDirs, s.rootCAs, s.clientCerts); err != nil {
		return fmt.Errorf("read certificates: %w", err)
	}
	return nil
}
