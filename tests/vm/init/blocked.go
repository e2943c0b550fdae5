// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// slow is when a command hangs rather than that it takes its time: what hangs
// in the kernel survives the time-out of a test, and tells nobody where.
const slow = 10 * time.Minute

// tellBlocked writes where in the kernel threads wait that cannot be killed, and
// what its workers are at.
func tellBlocked(out io.Writer) {
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*") // the pattern is sound
	for _, task := range tasks {
		status, _ := os.ReadFile(filepath.Join(task, "status")) // or it has ended
		name, rest, _ := strings.Cut(string(status), "\n")
		if strings.Contains(rest, "State:\tD") || strings.Contains(name, "kworker") && strings.Contains(name, "+") {
			stack, _ := os.ReadFile(filepath.Join(task, "stack")) // or the name has to do
			_, _ = fmt.Fprintf(out, "init: %s %s\n%s", task, name, stack)
		}
	}
}
