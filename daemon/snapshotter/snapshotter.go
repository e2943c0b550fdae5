// SPDX-License-Identifier: Apache-2.0

// Package snapshotter is containerd's view of block images: a
// [snapshots.Snapshotter] that keeps metadata, writes volume specs, and mounts
// the devices that the block daemon serves for them.
//
// # Snapshots
//
// A layer whose labels name a blob becomes a committed snapshot without being
// downloaded: its spec, block/config.v1.json, says where the bytes are. From
// then on that file is what makes a snapshot a block snapshot; every other one
// is a directory, as with containerd's overlayfs snapshotter, and the two may
// stack. A container's rootfs is an overlay mount over the device of the
// nearest block snapshot below it, the container's image: attached and mounted
// read-only once, under the image's own id, and shared by all containers. A
// writable container instead has a device of its own.
//
// # The one thing to know
//
// A metadata transaction makes small local writes and nothing else. Networks,
// devices and mounts come after it, under a lock per device, so that images
// wait for their own registry and not for each other's. What a crash leaves
// behind is found when a snapshotter is opened, and by Cleanup.
//
// # Not here yet
//
// The labels for recording a trace and for a disk quota are ignored. Docker's init layers need no treatment of
// their own, being directories on a block image.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi"
	"github.com/overlaybd-go/overlaybd/daemon/referrer"
	"github.com/overlaybd-go/overlaybd/daemon/snapshotter/blockmount"
	"github.com/overlaybd-go/overlaybd/image/spec"
)

// A Mode says how a container on a block image writes.
type Mode string

// The modes.
const (
	ModeOverlay Mode = "overlayfs" // to a directory, over the image's shared device
	ModeDir     Mode = "dir"       // to a device of its own, mounted for it
	ModeDev     Mode = "dev"       // to a device of its own, handed out as it is
)

var modes = []Mode{ModeOverlay, ModeDir, ModeDev}

// A WritableLayer is the form of a new writable layer.
type WritableLayer string

// The forms: one grows with every write, the other is a sparse file.
const (
	Append WritableLayer = "append"
	Sparse WritableLayer = "sparse"
)

// Options configure a Snapshotter. Root and Block are required.
type Options struct {
	Root   string           // directory of all state, absolute
	Block  blockapi.Service // gives out the devices
	Logger *slog.Logger     // nil discards

	RWMode        Mode          // for containers whose labels do not say; "" is ModeOverlay
	WritableLayer WritableLayer // "" is Append
	DefaultFS     string        // "type;mount options;mkfs arguments"; "" is ext4
	TurboFS       []string      // file systems of TurboOCI layers, best first; nil is erofs, ext4

	// Converter makes block layers of ordinary ones whose labels ask for it; nil
	// has them unpacked.
	Converter Converter

	// Attached finds block images that are read in place of ordinary ones; nil
	// finds none.
	Attached *referrer.Finder

	AutoRemoveDevice bool // detach an image's device with its last container
	AsyncRemove      bool // leave to Cleanup what Remove can put off

	PlainHTTP      []string // registries, "host:port", whose blobs are fetched by http
	OverlayOptions []string // further options of overlay mounts

	// AttachTimeout bounds attaching and mounting one device; 0 is 2 minutes,
	// the patience of the kubelet.
	AttachTimeout time.Duration
}

// A Snapshotter implements [snapshots.Snapshotter] and [snapshots.Cleaner].
type Snapshotter struct {
	opts Options
	log  *slog.Logger
	at   layout
	ms   *storage.MetaStore

	// writing is held over a write transaction and the undoing of one that
	// failed: between the two, the id may be given out again.
	writing sync.Mutex

	// devices is taken, by snapshot id, around everything done to a device, its
	// mount, and the directory they are in. It comes before writing.
	devices keyLock

	notLazy  *referrer.Journal
	expected chan announcement // layers to tell the block daemon of

	life context.Context // ends with Close; bounds work that outlives a call
	stop context.CancelFunc
	work sync.WaitGroup
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter whose state is in opts.Root, or creates it, and
// repairs what a crash or a reboot left. Where the block daemon does not answer
// that is logged and left to Cleanup; directories need no daemon.
func New(ctx context.Context, opts Options) (*Snapshotter, error) {
	if err := opts.complete(); err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	s, err := open(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("open snapshotter in %s: %w", opts.Root, err)
	}
	return s, nil
}

// complete checks opts and fills in defaults.
func (o *Options) complete() error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.AttachTimeout == 0 {
		o.AttachTimeout = 2 * time.Minute
	}
	if o.RWMode == "" {
		o.RWMode = ModeOverlay
	}
	if o.WritableLayer == "" {
		o.WritableLayer = Append
	}
	if o.DefaultFS == "" {
		o.DefaultFS = "ext4"
	}
	if o.TurboFS == nil {
		o.TurboFS = []string{"erofs", "ext4"}
	}
	_, err := blockmount.ParseFS(o.DefaultFS)
	switch {
	case err != nil:
		return fmt.Errorf("default file system: %w", err)
	case o.Block == nil:
		return errors.New("no block daemon")
	case !filepath.IsAbs(o.Root) || strings.ContainsAny(o.Root, ":,"):
		return fmt.Errorf("root %q: it must be an absolute path without the ':' and ',' that separate overlay options", o.Root)
	case !slices.Contains(modes, o.RWMode):
		return fmt.Errorf("mode %q is none of %v", o.RWMode, modes)
	case o.WritableLayer != Append && o.WritableLayer != Sparse:
		return fmt.Errorf("writable layer %q is neither %s nor %s", o.WritableLayer, Append, Sparse)
	}
	return nil
}

func open(ctx context.Context, opts Options) (*Snapshotter, error) {
	if err := os.MkdirAll(opts.Root, 0o700); err != nil {
		return nil, err
	}
	root, err := filepath.EvalSymlinks(opts.Root) // as the mount table has it
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{opts: opts, log: opts.Logger, at: layout(root)}
	if err := os.MkdirAll(s.at.snapshots(), 0o700); err != nil {
		return nil, err
	}
	if ok, err := fs.SupportsDType(root); err != nil || !ok {
		return nil, errors.Join(err, errors.New("its file system does not tell file types in directories (d_type)"))
	}
	if s.ms, err = storage.NewMetaStore(s.at.metadata()); err != nil {
		return nil, err
	}
	s.opts.OverlayOptions = append(kernelOptions(root, opts.OverlayOptions), opts.OverlayOptions...)
	s.life, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.reconcile(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if opts.Attached == nil {
		_ = os.Remove(s.at.notLazy()) // of a time when there was a choice
	}
	s.notLazy = referrer.OpenJournal(s.at.notLazy())
	s.expected = make(chan announcement, spec.MaxLowers)
	s.work.Go(s.announce)
	s.work.Go(s.settleAll)
	return s, nil
}

// kernelOptions returns the overlay options that the kernel needs and that are
// not given. Without index=off, an upper directory used before cannot be mounted
// again on other lower ones.
func kernelOptions(root string, given []string) (opts []string) {
	has := func(name string) bool {
		return slices.ContainsFunc(given, func(o string) bool { return o == name || strings.HasPrefix(o, name+"=") })
	}
	if need, err := overlayutils.NeedsUserXAttr(root); err == nil && need && !has("userxattr") {
		opts = append(opts, "userxattr")
	}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil && !has("index") {
		opts = append(opts, "index=off")
	}
	return opts
}

// Close waits for work in progress, which it cuts short, and closes the
// metadata. Mounts and devices stay.
func (s *Snapshotter) Close() error {
	s.stop()
	s.work.Wait()
	return s.ms.Close()
}

// view runs fn in a read transaction.
func (s *Snapshotter) view(ctx context.Context, fn func(context.Context) error) error {
	return s.ms.WithTransaction(ctx, false, fn)
}

// update runs fn in a write transaction. If that fails, undo removes what fn
// did outside of the metadata before anyone can see it.
func (s *Snapshotter) update(ctx context.Context, fn func(context.Context) error, undo func()) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	err := s.ms.WithTransaction(ctx, true, fn)
	if err != nil && undo != nil {
		undo()
	}
	return err
}

// Stat returns what is known of the snapshot key.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.view(ctx, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes the labels of a snapshot.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.update(ctx, func(ctx context.Context) error {
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	}, nil)
	return updated, err
}

// Walk calls fn for every snapshot that matches one of the filters.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.view(ctx, func(ctx context.Context) error { return walk(ctx, fn, filters...) })
}

// walk is storage.WalkInfo, but finds no error in a store that has yet to see
// its first snapshot.
func walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	called := false
	err := storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
		called = true
		return fn(ctx, info)
	}, filters...)
	if errdefs.IsNotFound(err) && !called {
		return nil
	}
	return err
}
