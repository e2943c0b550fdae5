// SPDX-License-Identifier: Apache-2.0

package tcmu_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/backendtest"
	"github.com/overlaybd-go/overlaybd/backend/tcmu"
	"github.com/overlaybd-go/overlaybd/tests/need"
)

var many = flag.Int("devices", 20, "how many devices to make at once")

func export(t *testing.T, e *tcmu.Exporter, id string, v backend.Volume) backend.Device {
	t.Helper()
	d, err := e.Export(t.Context(), id, v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestExt4 makes a file system on a device, fills it, and reads it through
// another one.
func TestExt4(t *testing.T) {
	needTCMU(t)
	e := newExporter(t, tcmu.Options{})
	v := backendtest.NewMemVolume(64 << 20)
	want := make([]byte, 5<<20+123)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)

	d := export(t, e, "ext4", v)
	run(t, need.Command(t, "mkfs.ext4"), "-q", d.Path())
	mounted(t, d.Path(), 0, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "file"), want, 0o600); err != nil {
			t.Error(err)
		}
		if err := d.Remove(t.Context()); !errors.Is(err, backend.ErrBusy) {
			t.Errorf("Remove of a mounted disk = %v, want ErrBusy", err)
		}
	})
	run(t, need.Command(t, "e2fsck"), "-fn", d.Path())
	if v.Syncs() == 0 {
		t.Error("unmounting synced nothing")
	}

	second := export(t, e, "ext4-read", backendtest.ReadOnly(v))
	mounted(t, second.Path(), unix.MS_RDONLY, func(dir string) {
		if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v, want the %d written", len(got), err, len(want))
		}
	})
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func mounted(t *testing.T, disk string, flags uintptr, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(disk, dir, "ext4", flags, ""); err != nil {
		t.Fatal(err)
	}
	f(dir)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
}

// TestMany makes devices all at once, reads all of them, and removes them.
func TestMany(t *testing.T) {
	needTCMU(t)
	e := newExporter(t, tcmu.Options{})
	start := time.Now()
	var wg sync.WaitGroup
	for i := range *many {
		wg.Go(func() {
			v := backendtest.NewMemVolume(1 << 20)
			want := bytes.Repeat([]byte{byte(i)}, 512)
			_, err := v.WriteAt(t.Context(), want, 4096)
			if err != nil {
				t.Error(err)
				return
			}
			d, err := e.Export(t.Context(), fmt.Sprint(i), v)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := readAt(d.Path(), 4096, 512); err != nil || !bytes.Equal(got, want) {
				t.Errorf("device %d: %v, or another's bytes", i, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d devices in %v", *many, time.Since(start).Round(time.Millisecond))
}

func readAt(name string, off int64, n int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	_, err = f.ReadAt(p, off)
	return p, errors.Join(err, f.Close())
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

// TestTools asks tools of the distribution to take the disk for one.
func TestTools(t *testing.T) {
	needTCMU(t)
	e := newExporter(t, tcmu.Options{})
	v := backendtest.NewMemVolume(1 << 20)
	if _, err := v.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	d := export(t, e, "tools", v)
	run(t, need.Command(t, "blkdiscard"), "-o", "4096", "-l", "65536", d.Path())
	if got, err := readAt(d.Path(), 4096, 65536); err != nil || !bytes.Equal(got, make([]byte, 65536)) {
		t.Errorf("what was discarded does not read as zeroes: %v", err)
	}
	run(t, need.Command(t, "blkdiscard"), "-z", "-o", "524288", "-l", "65536", d.Path())
	if got, err := readAt(d.Path(), 524288-512, 512+65536); err != nil || !bytes.Equal(got, append(bytes.Repeat([]byte{7}, 512), make([]byte, 65536)...)) {
		t.Errorf("what was zeroed does not read as zeroes: %v", err)
	}
}
