// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/overlaybd-go/overlaybd/tests/need"
)

// The large images are made from Debian's packages in the first run, which
// takes minutes. Only benchmarks use them.

// Redis returns Redis on Debian, 56 MB in 3 layers.
func Redis(t testing.TB) Image {
	return large(t, "redis", func(s *system) []Layer {
		s.install("adduser", "procps", "libhiredis0.14", "libjemalloc2", "liblzf1", "lua-bitop", "lua-cjson")
		s.install("redis-server")
		return s.layers()
	})
}

// Python returns Python with NumPy, SciPy and Pandas, Node.js with npm and
// Express, and a blob, 430 MB in 4 layers.
func Python(t testing.TB) Image {
	return large(t, "python", func(s *system) []Layer {
		s.install("python3", "python3-numpy", "python3-scipy", "python3-pandas")
		s.install("nodejs", "npm", "node-express")
		return append(s.layers(), blob(128<<20))
	})
}

// Big returns a Java class with its runtime and PostgreSQL on Python's layers,
// and compilers and a blob, 1 GB in 5 layers.
func Big(t testing.TB) Image {
	return large(t, "big", func(s *system) []Layer {
		s.install("python3", "python3-numpy", "python3-scipy", "python3-pandas")
		s.install("openjdk-17-jre-headless", "postgresql-15")
		s.write("app/Hello.class", 0o644, helloClass())
		s.install("gcc", "clang", "llvm", "golang")
		return append(s.layers(), blob(448<<20))
	})
}

// large returns the image of that name, made by grow out of a minimal system
// unless an earlier run did. It is compressed as images usually are.
func large(t testing.TB, name string, grow func(*system) []Layer) Image {
	t.Helper()
	layout := need.Cached(t, name+"-"+Platform.Architecture+"-"+samplesVersion, func(layout string) {
		t.Logf("installing Debian for the image %s: minutes, but only once", name)
		layers := grow(newSystem(t))
		if _, err := build(layout, Platform, []string{"/bin/true"}, gzip.DefaultCompression, layers...); err != nil {
			t.Fatal(err)
		}
	})
	img, err := Open(layout)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// blob returns the layer of a file of n bytes, half of which are noise, the
// others alike.
func blob(n int64) Layer {
	return func(w *tar.Writer) error {
		h := tar.Header{Typeflag: tar.TypeReg, Name: "blob", Mode: 0o644, Size: n, ModTime: epoch, Format: tar.FormatPAX}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		random := rand.NewChaCha8([32]byte{10})
		alike := bytes.Repeat([]byte("overlaybd"), 8<<10)
		for ; n > 0; n -= 128 << 10 {
			if _, err := io.CopyN(w, random, 64<<10); err != nil {
				return err
			}
			if _, err := w.Write(alike[:64<<10]); err != nil {
				return err
			}
		}
		return nil
	}
}

// helloClass returns what a compiler of Java 17 makes of
//
//	public class Hello {
//		public static void main(String[] args) { System.out.println("ready"); }
//	}
//
// See The Java Virtual Machine Specification, chapter 4.
func helloClass() []byte {
	const class, stringOf, field, method, nameAndType = 7, 8, 9, 10, 12
	var pool, code []byte
	ref := func(tag byte, index ...uint16) {
		pool = append(pool, tag)
		for _, i := range index {
			pool = binary.BigEndian.AppendUint16(pool, i)
		}
	}
	text := func(s string) {
		ref(1, uint16(len(s)))
		pool = append(pool, s...)
	}
	ref(class, 2) // 1, and so on
	text("Hello")
	ref(class, 4)
	text("java/lang/Object")
	text("main")
	text("([Ljava/lang/String;)V")
	text("Code")
	ref(field, 9, 11) // 8
	ref(class, 10)
	text("java/lang/System")
	ref(nameAndType, 12, 13)
	text("out")
	text("Ljava/io/PrintStream;")
	ref(method, 15, 17) // 14
	ref(class, 16)
	text("java/io/PrintStream")
	ref(nameAndType, 18, 19)
	text("println")
	text("(Ljava/lang/String;)V")
	ref(stringOf, 21) // 20
	text("ready")
	code = append(code, 0xb2, 0, 8, 0x12, 20, 0xb6, 0, 14, 0xb1) // getstatic, ldc, invokevirtual, return

	b := append([]byte("\xca\xfe\xba\xbe\x00\x00\x00\x3d\x00\x16"), pool...)                                     // version 61, 21 constants
	b = append(b, "\x00\x21\x00\x01\x00\x03\x00\x00\x00\x00\x00\x01"...)                                         // public super, this, Object, 1 method
	b = append(b, "\x00\x09\x00\x05\x00\x06\x00\x01\x00\x07\x00\x00\x00\x15\x00\x02\x00\x01\x00\x00\x00\x09"...) // public static main, its code
	b = append(b, code...)
	return append(b, "\x00\x00\x00\x00\x00\x00"...) // no exceptions, no attributes
}
