// SPDX-License-Identifier: Apache-2.0

// Command shaped stands before a registry and makes it as far away as one on a
// network. Once interrupted, it prints the requests that it has served:
//
//	go run ./tests/bench/shaped --upstream http://127.0.0.1:5000 --profile wan
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/bench/shape"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "shaped:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(w io.Writer) error {
	opts := shape.Options{}
	listen := flag.String("listen", "127.0.0.1:5001", "serve the registry on `address`")
	storage := flag.String("storage", "127.0.0.2:5001", "serve what is redirected on `address`")
	upstream := flag.String("upstream", "http://127.0.0.1:5000", "stand before the registry at `URL`")
	profile := flag.String("profile", "wan", "be as far away as lan, wan or slow")
	flag.DurationVar(&opts.Delay, "delay", 0, "let the server think for `duration` before each answer")
	flag.BoolVar(&opts.TLS, "tls", false, "charge connections for TLS, though they are plain")
	flag.BoolVar(&opts.Token, "token", false, "want bearer tokens")
	flag.BoolVar(&opts.Redirect, "redirect", false, "serve blobs from the second address")
	flag.BoolVar(&opts.Ramp, "ramp", false, "let connections start slowly, as TCP's do")
	flag.Parse()
	var err error
	if opts.Upstream, err = url.Parse(*upstream); err != nil {
		return err
	}
	i := slices.IndexFunc(shape.Profiles, func(p shape.Profile) bool { return p.Name == *profile })
	if i < 0 {
		return fmt.Errorf("no profile %q", *profile)
	}
	opts.Profile = shape.Profiles[i]

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	begun := time.Now()
	p, err := shape.Start(ctx, opts, *listen, *storage)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w, "listening on", p.Host()); err != nil {
		return errors.Join(err, p.Close())
	}
	<-ctx.Done()
	return errors.Join(p.Close(), show(w, p.Log(), begun))
}

// show prints the requests of a log and what they come to.
func show(w io.Writer, l shape.Log, begun time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "start\tfirst byte\tend\tto\tconnection\tstatus\tbytes\trequest")
	since := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.Sub(begun).Round(100 * time.Microsecond).String()
	}
	for _, q := range l {
		opened := ""
		if q.Opened {
			opened = " new"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d%s\t%d\t%d\t%s %s %s\n", since(q.Start), since(q.First), since(q.End), q.Endpoint, q.Conn, opened, q.Status, q.Bytes, q.Method, q.Path, q.Range)
	}
	s, chain := l.Summarize(begun, time.Now()), l.Chain()
	fmt.Fprintf(tw, "%d requests, %d connections, %d bytes; longest chain %d requests, %d round trips\n", s.Requests, s.Connections, s.Bytes, len(chain), chain.Trips())
	return tw.Flush()
}
