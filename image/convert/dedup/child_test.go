// SPDX-License-Identifier: Apache-2.0

package dedup_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/overlaybd-go/overlaybd/image/convert/dedup"
)

// childEnv makes the test's program a child that records layers in the
// database it names.
const childEnv = "DEDUP_TEST_CHILD"

func TestMain(m *testing.M) {
	if dsn := os.Getenv(childEnv); dsn != "" {
		if err := runChild(context.Background(), dsn, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this is a main
		}
		return
	}
	m.Run()
}

// runChild records as many layers as it is told, and
// writes a line for each.
func runChild(ctx context.Context, dsn, layers string) error {
	count, err := strconv.Atoi(layers)
	if err != nil {
		return err
	}
	db, err := dedup.Open(ctx, dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	for n := range count {
		e := childEntry(n)
		if err := db.PutLayer(ctx, layerKey(e.Repo, n), e.Digest, e.Size); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(os.Stdout, n); err != nil {
			return err
		}
	}
	return nil
}

// childEntry is what children record as the layer n.
func childEntry(n int) *dedup.Entry {
	return &dedup.Entry{Repo: "child", Digest: named("child", n), Size: int64(n)}
}

type child struct {
	cmd    *exec.Cmd
	lines  *bufio.Reader
	stderr bytes.Buffer
}

// startChild starts a process that records layers. It ends with the test.
func startChild(t *testing.T, dsn string, layers int) *child {
	t.Helper()
	c := &child{cmd: exec.CommandContext(t.Context(), os.Args[0], strconv.Itoa(layers))}
	c.cmd.Env = append(os.Environ(), childEnv+"="+dsn)
	c.cmd.Stderr = &c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

// acknowledged reads up to limit lines, and returns how many came.
func (c *child) acknowledged(limit int) int {
	for n := range limit {
		if _, err := c.lines.ReadString('\n'); err != nil {
			return n
		}
	}
	return limit
}

// kill kills the process with SIGKILL and waits for its end.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_, _ = io.Copy(io.Discard, c.lines)
	_ = c.cmd.Wait() // it was killed
}
