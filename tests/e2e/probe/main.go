// SPDX-License-Identifier: Apache-2.0

// Command probe is the program of the synthetic test image: it looks at the
// file system it runs on.
//
//	probe hello         print "hello"
//	probe sum FILE...   print the SHA-256 of every file
//	probe wait          sleep until a signal comes
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command")
	}
	switch args[0] {
	case "hello":
		_, err := fmt.Fprintln(out, "hello")
		return err
	case "sum":
		return sum(args[1:], out)
	case "wait":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
		return nil
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func sum(names []string, out io.Writer) error {
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%x  %s\n", h.Sum(nil), name); err != nil {
			return err
		}
	}
	return nil
}
