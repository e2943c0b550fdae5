// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/overlaybd-go/overlaybd/conf"
	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
)

const (
	// blockdStart is how long a block daemon may take to answer, or to end. It
	// does little more than open files.
	blockdStart = 30 * time.Second

	// probeTimeout bounds one question whether it is there.
	probeTimeout = time.Second
)

// A blockDaemon is the block daemon as the snapshotter sees it.
type blockDaemon struct {
	*blockapi.Client
	address string
	exit    chan struct{} // closed when the child has ended; nil without one
}

// findBlockd returns the block daemon at the configured address, and starts
// one when none answers there.
func findBlockd(ctx context.Context, cfg *conf.Config, args []string, stderr io.Writer, log *slog.Logger) (*blockDaemon, error) {
	client, err := blockapi.Dial(cfg.Blockd.Address)
	if err != nil {
		return nil, err
	}
	d := &blockDaemon{Client: client, address: cfg.Blockd.Address}
	err = d.probe(ctx)
	if err != nil && !cfg.Blockd.Start {
		err = fmt.Errorf("no block daemon answers at %s, and [blockd] start is off: %w", cfg.Blockd.Address, err)
		return nil, errors.Join(err, client.Close())
	}
	if err == nil {
		return d, nil
	}
	pid, err := d.start(ctx, cfg, args, stderr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start block daemon: %w", err), client.Close())
	}
	log.Info("block daemon started", slog.Int("pid", pid))
	return d, nil
}

func (d *blockDaemon) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err := d.Attachments(ctx)
	return err
}

// start runs the daemon's binary until it answers, in a session of its own:
// signals of a terminal or of a process group do not reach it there. It returns
// its process id.
func (d *blockDaemon) start(ctx context.Context, cfg *conf.Config, args []string, stderr io.Writer) (pid int, err error) {
	binary, err := blockdBinary(cfg.Blockd.Binary)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(binary, args...) //nolint:noctx // it outlives us
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	if f, ok := stderr.(*os.File); ok { // never a pipe of ours
		cmd.Stderr = f
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	d.exit = make(chan struct{})
	go func() {
		_ = cmd.Wait() // it has told why itself
		close(d.exit)
	}()
	if err := d.await(ctx); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, os.WriteFile(pidFile(d.address), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
}

// blockdBinary returns the configured binary, or the one beside this program.
func blockdBinary(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(self), "overlaybd-blockd"), nil
}

// await returns when the daemon answers.
func (d *blockDaemon) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, blockdStart)
	defer cancel()
	for {
		err := d.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.exit:
			return errors.New("it ended at once; its log says why")
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
