// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/image/spec"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

// TestFlattenGolden flattens two layers of the reference into one disk.
func TestFlattenGolden(t *testing.T) {
	dir, files := need.Golden(t, "stack/*")
	v := &spec.Volume{Lowers: []spec.Lower{
		{File: filepath.Join(dir, "stack/l0.obd")},
		{File: filepath.Join(dir, "stack/l1.obd")},
	}}
	config, out := filepath.Join(dir, "config.v1.json"), filepath.Join(dir, "disk.img")
	if err := v.Save(config); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"flatten", config, out}, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(disk)
	if got, want := hex.EncodeToString(sum[:]), files["stack/l1.obd"].Volume; got != want {
		t.Errorf("got disk %s, want %s", got, want)
	}
	if err := run(t.Context(), []string{"flatten", config, out}, &stdout, &stderr); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing file: %v, want fs.ErrExist", err)
	}
}

func TestFlattenLeavesNothingOnFailure(t *testing.T) {
	dir := t.TempDir()
	config, out := filepath.Join(dir, "config.v1.json"), filepath.Join(dir, "disk.img")
	if err := (&spec.Volume{Lowers: []spec.Lower{{File: filepath.Join(dir, "missing")}}}).Save(config); err != nil {
		t.Fatal(err)
	}
	err := run(t.Context(), []string{"flatten", config, out}, &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v, want an error naming the layer", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("output after a failure: %v, want none", err)
	}
}

// oneDevice is a block daemon that serves one device.
type oneDevice struct{ blockapi.Service }

func (oneDevice) Attachments(context.Context) ([]blockapi.Attachment, error) {
	return []blockapi.Attachment{{
		ID: "7", State: blockapi.Waiting, Error: "registry away", Size: 1 << 30,
		FetchedBytes: 5 << 20, CachedBytes: 1 << 20, Path: "/run/7/block", Image: "https://h/v2/r/blobs",
	}}, nil
}

func TestDevices(t *testing.T) {
	address := startDaemon(t, oneDevice{})
	var table, text bytes.Buffer
	if err := run(t.Context(), []string{"devices", "--address", address}, &table, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"waiting", "1 GiB", "5 MiB", "registry away"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("table lacks %q:\n%s", want, table.String())
		}
	}
	if err := run(t.Context(), []string{"devices", "--json", "--address", address}, &text, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	var list []blockapi.Attachment
	if err := json.Unmarshal(text.Bytes(), &list); err != nil || len(list) != 1 || list[0].FetchedBytes != 5<<20 {
		t.Errorf("got %s, %v", text.String(), err)
	}
}

func TestDevicesWithoutDaemon(t *testing.T) {
	err := run(t.Context(), []string{"devices", "--address", filepath.Join(t.TempDir(), "none")}, &bytes.Buffer{}, &bytes.Buffer{})
	var stderr bytes.Buffer
	if status := report(err, &stderr); status != exitFailure || !strings.Contains(stderr.String(), "Is overlaybd-blockd running") {
		t.Errorf("got status %d and %q", status, stderr.String())
	}
}
