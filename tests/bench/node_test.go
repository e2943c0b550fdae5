// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/overlaybd-go/overlaybd/tests/e2e"
)

// A usage is what processes have used.
type usage struct {
	user, system time.Duration

	// Bytes of memory. Proportional counts what several processes have in
	// common once; the peak is the sum of each one's largest.
	resident, proportional, peak int64
}

func (u usage) cpu() time.Duration { return u.user + u.system }

// since returns what was used since then.
func (u usage) since(then usage) usage {
	u.user -= then.user
	u.system -= then.system
	return u
}

type pids []int

// processes returns the project's daemons on a node, and all that belong to it.
func processes(tb testing.TB, node *e2e.Env) (daemons, all pids) {
	tb.Helper()
	if node.Snapshotter != nil {
		snapshotter, blockd := node.Snapshotter.PIDs()
		daemons = pids{snapshotter, blockd}
	}
	return daemons, append(pids{node.Containerd.PID()}, daemons...)
}

func (p pids) usage(tb testing.TB) (sum usage) {
	tb.Helper()
	for _, pid := range p {
		u, err := usageOf(pid)
		if err != nil {
			tb.Error(err) // in the middle of a container's output
		}
		sum.user += u.user
		sum.system += u.system
		sum.resident += u.resident
		sum.proportional += u.proportional
		sum.peak += u.peak
	}
	return sum
}

// tick is the unit of times in /proc, 1/100 s on every Linux of today.
const tick = 10 * time.Millisecond

func usageOf(pid int) (u usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The name, in parentheses, may hold spaces. utime is field 14, see proc(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return u, err
	}
	system, err := strconv.Atoi(fields[12])
	if err != nil {
		return u, err
	}
	u.user, u.system = time.Duration(user)*tick, time.Duration(system)*tick
	for _, m := range []struct {
		file, name string
		bytes      *int64
	}{{"status", "VmHWM", &u.peak}, {"smaps_rollup", "Rss", &u.resident}, {"smaps_rollup", "Pss", &u.proportional}} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, m.file))
		if err != nil {
			return u, err
		}
		_, line, _ := strings.Cut(string(text), "\n"+m.name+":")
		if _, err := fmt.Sscan(line, m.bytes); err != nil {
			return u, err
		}
		*m.bytes <<= 10 // the kernel says kB
	}
	return u, nil
}

// An opening is when the block daemon opened an image, from the request for it
// to the device.
type opening struct{ begun, done time.Time }

// openingOf returns what the log of the block daemon, which the snapshotter
// has started, says of its first device.
func openingOf(tb testing.TB, node *e2e.Env) opening {
	tb.Helper()
	log, err := os.Open(filepath.Join(node.Dir, "overlaybd-snapshotter.log"))
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var line struct {
			Msg  string
			Time time.Time
			Dur  time.Duration
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "device attached" {
			return opening{line.Time.Add(-line.Dur), line.Time}
		}
	}
	tb.Fatal("the log tells of no device")
	return opening{}
}
