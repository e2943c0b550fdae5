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
	source, target, turboTarget          string
	repository, inTag, inDigest          string
	outTag, outOverlaybd                 string
	turboOCI, fastOCI, fsType            string
	attach                               bool
	username, dir, hostsDir              string
	platform                             []string
	oci, mkfs, referrer, flatten         bool
	vsize, blockSize, jobs, concurrency  int
	baseLayer, algorithm, level          string
	dbStr, dbType                        string
	plain, insecure, verbose, json       bool
	certDirs, rootCAs, clientCerts       []string
	noUpload, dump, reserve, appendsOnly bool
}

func (f *flags) register(s *pflag.FlagSet) {
	s.StringVar(&f.source, "source", "", "image to convert")
	s.StringVar(&f.target, "target", "", "native image to write")
	s.StringVar(&f.turboTarget, "turbo-target", "", "turbo image to write")
	s.StringVarP(&f.repository, "repository", "r", "", "HOST/REPOSITORY of all")
	s.StringVarP(&f.inTag, "input-tag", "i", "", "tag of the image to convert")
	s.StringVarP(&f.inDigest, "input-digest", "g", "", "its digest, if it has no tag")
	s.StringVarP(&f.outTag, "output-tag", "o", "", "tag of the native image to write, where the source is")
	s.StringVar(&f.outOverlaybd, "overlaybd", "", "the same")
	s.StringVar(&f.turboOCI, "turboOCI", "", "tag of the turbo image to write, where the source is")
	s.StringVar(&f.fastOCI, "fastoci", "", "the same")
	s.BoolVar(&f.attach, "attach", false, "write a turbo image where the source is, as its referrer, without a tag")
	s.StringVar(&f.fsType, "fstype", "ext4", "file system in the layers, ext4 or erofs")
	s.StringSliceVar(&f.platform, "platform", nil, "convert these platforms of an index, such as linux/arm64 (default all)")
	s.BoolVar(&f.oci, "oci", false, "write OCI media types (default those of the source)")
	s.BoolVar(&f.referrer, "referrer", false, "refer to the source, as artifacts do; implies --oci")
	s.BoolVar(&f.flatten, "flatten", false, "merge all layers into one")
	s.BoolVar(&f.mkfs, "mkfs", true, "make a file system in the bottom layer; if false, put --base-layer below it")
	s.StringVar(&f.baseLayer, "base-layer", "/opt/overlaybd/baselayers/ext4_64", "block layer with a file system")
	s.IntVar(&f.vsize, "vsize", 64, "size of the disk in GiB, with --mkfs")
	s.StringVar(&f.algorithm, "algorithm", "lz4", "compression, lz4 or zstd")
	s.StringVar(&f.level, "level", "normal", "normal, or best: 6 % fewer bytes for several times the processor time")
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
	s.BoolVar(&f.reserve, "reserve", false, "")
	s.BoolVar(&f.appendsOnly, "disable-sparse", false, "")
	for _, name := range []string{"reserve", "disable-sparse"} {
		s.Lookup(name).Hidden = true
	}
	s.Lookup("fastoci").Deprecated = "use --turboOCI"
}

// settings are what the flags amount to.
type settings struct {
	flags
	from        store.Ref
	goals       []goal
	platforms   platforms.Matcher
	compression zfile.Options
	tls         *tls.Config
	credential  fetcher.Credential
}

func (f *flags) settings() (*settings, error) {
	s := &settings{flags: *f}
	for _, step := range []func() error{s.readRefs, s.readFormat, s.readNumbers, s.readPlatforms, s.readDB, s.readLogin} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return s, nil
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
	level, err := zfile.ParseLevel(s.level)
	if err != nil {
		return usage("--level: %w", err)
	}
	s.compression = zfile.Options{Algorithm: algorithm, Level: level, BlockSize: s.blockSize << 10, Workers: s.jobs}
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
	if s.dbType != "sqlite" && s.dbType != "mysql" {
		return usage("--db-type %q: want sqlite or mysql", s.dbType)
	}
	for _, g := range s.goals {
		if s.dbStr != "" && g.to.Kind != store.Registry && !s.noUpload {
			return usage("--db-str finds layers in registries, which %s is not in", g.to)
		}
	}
	return nil
}

func (s *settings) readLogin() (err error) {
	if s.username != "" {
		user, password, ok := strings.Cut(s.username, ":")
		if !ok {
			return usage("-u: want USER:PASSWORD")
		}
		if hosts := s.hosts(); len(hosts) > 1 {
			return usage("-u: it is not clear whether it is for %s; use docker login", strings.Join(hosts, " or "))
		}
		s.credential = fetcher.Credential{Username: user, Password: password}
	}
	if s.tls, err = tlsConfig(s.insecure, s.certDirs, s.rootCAs, s.clientCerts); err != nil {
		return fmt.Errorf("read certificates: %w", err)
	}
	return nil
}
