// SPDX-License-Identifier: Apache-2.0

package tcmu_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

func export(t *testing.T, e *tcmu.Exporter, id string, v backend.Volume) backend.Device {
	t.Helper()
	d, err := e.Export(t.Context(), id, v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestNames makes devices that have more or less in common: each must be found
// under its own name, by itself.
func TestNames(t *testing.T) {
	needTCMU(t)
	for _, id := range []string{"1", "12345678901234", strings.Repeat("x", 251), "sha256-0a,b c=%s"} {
		t.Run(id[:min(len(id), 20)], func(t *testing.T) {
			for _, tenant := range []int{0, 5, 105} {
				e := newExporter(t, tcmu.Options{Tenant: tenant})
				v := backendtest.NewMemVolume(int64(1+tenant) << 20)
				d := export(t, e, id, v)
				f, err := os.Open(d.Path())
				if err != nil {
					t.Fatal(err)
				}
				if n, err := f.Seek(0, io.SeekEnd); err != nil || n != v.Size() {
					t.Errorf("tenant %d reaches a disk of %d bytes, %v, want %d", tenant, n, err, v.Size())
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	e := newExporter(t, tcmu.Options{})
	for _, id := range []string{"", "a/b", "a\nb", strings.Repeat("x", 252)} {
		if _, err := e.Export(t.Context(), id, backendtest.NewMemVolume(512)); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("id %q: %v, want fs.ErrInvalid", id, err)
		}
	}
}

// TestRollBack asks an Export that fails to leave nothing and say why.
func TestRollBack(t *testing.T) {
	needTCMU(t)
	e := newExporter(t, tcmu.Options{})
	t.Run("deadline", func(t *testing.T) {
		v := backendtest.NewFaultVolume(backendtest.NewMemVolume(1 << 20))
		entered, release := v.Stall(backendtest.Read, 0) // the kernel looks for partitions there
		defer release()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-entered
			cancel()
		}()
		if _, err := e.Export(ctx, "1", v); !errors.Is(err, context.Canceled) {
			t.Errorf("Export of a volume that hangs = %v, want context.Canceled", err)
		}
		if err := v.Sync(t.Context()); err != nil {
			t.Errorf("the volume was closed: %v", err)
		}
	})
	t.Run("kernel", func(t *testing.T) {
		const block = "/sys/module/target_core_user/parameters/block_netlink"
		if err := os.WriteFile(block, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := e.Export(ctx, "1", backendtest.NewMemVolume(1<<20))
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, unix.EAGAIN) {
			t.Errorf("Export while the kernel sends no events = %v, want EAGAIN until the deadline", err)
		}
		if err := os.WriteFile(block, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	})
	if left, err := filepath.Glob("/sys/kernel/config/target/*/*/*1"); len(left) > 0 || err != nil {
		t.Errorf("left: %q, %v", left, err)
	}
	export(t, e, "1", backendtest.NewMemVolume(1<<20)) // nothing is in its way
}

// TestAdopt serves a device that another program makes, as the reference's
// snapshotter does.
func TestAdopt(t *testing.T) {
	needTCMU(t)
	v := backendtest.NewMemVolume(1 << 20)
	asked := ""
	newExporter(t, tcmu.Options{Adopt: func(_ context.Context, id, config string) (backend.Volume, error) {
		asked = id + " " + config
		if id == "bad" {
			return nil, unix.ENOENT
		}
		return v, nil
	}})
	const (
		target = "/sys/kernel/config/target/"
		hba    = target + "core/user_999999999/"
		naa    = target + "loopback/naa.1990000000000077/"
		lun    = naa + "tpgt_1/lun/lun_0"
	)
	script := `set -e
		mkdir -p ` + hba + `dev_77
		echo -n dev_config=overlaybd//path/config.v1.json > ` + hba + `dev_77/control
		echo -n max_data_area_mb=4 > ` + hba + `dev_77/control
		echo 1 > ` + hba + `dev_77/enable
		mkdir -p ` + lun + `
		echo naa.1990000000000077 > ` + naa + `tpgt_1/nexus
		ln -s ` + hba + `dev_77 ` + lun + `/dev_77`
	run(t, need.Command(t, "sh"), "-c", script)
	if want := "77 /path/config.v1.json"; asked != want {
		t.Errorf("asked to open %q, want %q", asked, want)
	}
	address, err := os.ReadFile(naa + "tpgt_1/address")
	if err != nil {
		t.Fatal(err)
	}
	size := "/sys/class/scsi_device/" + strings.TrimSpace(string(address)) + ":0/device/block/*/size"
	for deadline := time.Now().Add(30 * time.Second); ; {
		if found, _ := filepath.Glob(size); len(found) == 1 {
			if b, err := os.ReadFile(found[0]); err != nil || strings.TrimSpace(string(b)) != "2048" {
				t.Errorf("disk of %q sectors, %v, want 2048", b, err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no disk appears")
		}
	}
	run(t, need.Command(t, "sh"), "-c", `set -e
		rm `+lun+`/dev_77
		rmdir `+lun+` `+naa+`tpgt_1 `+naa+` `+hba+`dev_77`)

	run(t, need.Command(t, "sh"), "-c", `set -e
		mkdir `+hba+`dev_bad
		echo -n dev_config=overlaybd//x > `+hba+`dev_bad/control`)
	if err := os.WriteFile(hba+"dev_bad/enable", []byte("1"), 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("enabling what cannot be opened: %v, want ENOENT", err)
	}
	if err := unix.Rmdir(hba + "dev_bad"); err != nil {
		t.Error(err)
	}
}
