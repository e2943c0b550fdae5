// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"errors"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlaybd-go/overlaybd/fetcher"
	"github.com/overlaybd-go/overlaybd/fetcher/agent"
	"github.com/overlaybd-go/overlaybd/fetcher/fetchertest"
	"github.com/overlaybd-go/overlaybd/fetcher/http"
	"github.com/overlaybd-go/overlaybd/fetcher/mirror"
	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
	"github.com/overlaybd-go/overlaybd/fetcher/registry"
	"github.com/overlaybd-go/overlaybd/fetcher/s3"
	"github.com/overlaybd-go/overlaybd/fetcher/source"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// hangs are places before the registry, all of them at a server that takes
// requests and does not answer.
var hangs = map[string]func(t *testing.T, server string) func(fetcher.Ref) []mirror.Place{
	"registry": func(*testing.T, string) func(fetcher.Ref) []mirror.Place { return nil },
	"bucket": func(t *testing.T, server string) func(fetcher.Ref) []mirror.Place {
		return ruled(t, "s3://layers", s3.New(s3.Options{Endpoint: server, PathStyle: true, Anonymous: true, Timeouts: brief}))
	},
	"web server": func(t *testing.T, server string) func(fetcher.Ref) []mirror.Place {
		return ruled(t, server, http.New(http.Options{Timeouts: brief}))
	},
	"agent": func(t *testing.T, server string) func(fetcher.Ref) []mirror.Place {
		a, err := agent.New(agent.Options{Kind: agent.Prefix, URL: server})
		if err != nil {
			t.Fatal(err)
		}
		reg := registry.New(registry.Options{})
		t.Cleanup(func() { _ = errors.Join(a.Close(), reg.Close()) })
		opener := a.Opener(reg.Via(a, brief))
		return func(ref fetcher.Ref) []mirror.Place {
			return []mirror.Place{{Name: "agent", Ref: a.Ref(ref), Opener: opener}}
		}
	},
}

var brief = rangeget.Timeouts{HeaderTimeout: 100 * time.Millisecond, IdleTimeout: 100 * time.Millisecond}

func ruled(t *testing.T, base string, opener fetcher.Opener) func(fetcher.Ref) []mirror.Place {
	t.Helper()
	rules, err := source.New(source.Rule{Match: "*", Base: base, Layout: source.Flat, Opener: opener})
	if err != nil {
		t.Fatal(err)
	}
	return rules.Places
}

// TestHangingSourcesFreezeNobody: while all places of an image hang, its
// reader waits, and nobody else does: not those of other devices, nor who
// lists, stats or syncs what lies beside it. In the end the reader gets an EIO,
// and its data when the registry is back.
func TestHangingSourcesFreezeNobody(t *testing.T) {
	for name, places := range hangs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			server := httptest.NewServer(nethttp.HandlerFunc(func(_ nethttp.ResponseWriter, r *nethttp.Request) {
				asked.Add(1)
				<-r.Context().Done()
			}))
			t.Cleanup(func() {
				server.CloseClientConnections()
				server.Close()
			})
			o := quick(4 * time.Second)
			o.elsewhere = places(t, server.URL)
			n := newNodeOf(t, o)
			v, content := n.push()
			hung := n.attach("hung", n.save("hung", v)).Path
			other := n.attach("other", n.save("other", &spec.Volume{Lowers: []spec.Lower{{File: filepath.Join(n.dir, "sealed")}}})).Path
			n.registry.ResetLog()
			n.registry.Fault(fetchertest.Fault{Hang: true, Times: -1})

			done := make(chan error, 1)
			go func() {
				_, err := read(t, hung)
				done <- err
			}()
			if err := n.registry.Await(t.Context(), fetchertest.Origin, 1); err != nil {
				t.Fatal(err)
			}
			if (asked.Load() == 0) != (o.elsewhere == nil) {
				t.Errorf("the place before the registry got %d requests", asked.Load())
			}
			wantRead(t, other, content)
			lookAround(t, hung)
			select {
			case err := <-done:
				t.Errorf("the reader of the hung device was back first, with %v", err)
			default:
				if err := <-done; !errors.Is(err, unix.EIO) {
					t.Errorf("got %v, want EIO", err)
				}
			}
			n.registry.ClearFaults()
			n.registry.Release()
			wantRecovery(t, hung, content)
		})
	}
}

// lookAround does with a device and its file system what df, ls and sync do.
func lookAround(t *testing.T, device string) {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, statErr := f.Stat()
	_, listErr := os.ReadDir(filepath.Dir(device))
	var fs unix.Statfs_t
	err = errors.Join(statErr, listErr, unix.Fstatfs(int(f.Fd()), &fs), f.Sync(), unix.Syncfs(int(f.Fd())))
	if err != nil {
		t.Error(err)
	}
}
