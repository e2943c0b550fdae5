// SPDX-License-Identifier: Apache-2.0

package conf_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlaybd-go/overlaybd/conf"
)

// TestUnits pins what keeps containers alive when a daemon is restarted.
func TestUnits(t *testing.T) {
	for unit, want := range map[string][]string{
		"overlaybd-blockd.service": {
			"Type=notify", "OOMScoreAdjust=-999", "LimitNOFILE=1048576",
			"ExecStartPre=-/bin/mount -t configfs none /sys/kernel/config",
		},
		"overlaybd-snapshotter.service": {"Type=notify", "KillMode=process", "Wants=overlaybd-blockd.service", "LimitNOFILE=1048576"},
	} {
		text, err := os.ReadFile(filepath.Join("systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range want {
			if !strings.Contains(string(text), "\n"+line+"\n") {
				t.Errorf("%s lacks %s", unit, line)
			}
		}
		if !strings.Contains(string(text), " --config "+conf.DefaultPath+"\n") {
			t.Errorf("%s does not name %s", unit, conf.DefaultPath)
		}
	}
}
