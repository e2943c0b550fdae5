// SPDX-License-Identifier: Apache-2.0

// Package tcmu exports volumes as SCSI disks, through the kernel's target in
// user space (TCM user, module target_core_user) and its loopback host
// (tcm_loop). It is the exporter that the oldest kernels have, and the
// reference's; devices bear the names the reference gives them.
//
// Requests come through a ring in memory shared with the kernel, and data is
// read straight into it. Devices survive the process: their users wait until
// the next one calls [Exporter.Resume].
//
// Three things to know:
//
//   - The kernel waits, unkillable, for answers of this process when a device
//     is made or removed. A process killed meanwhile ends only when the next
//     one, in the same PID namespace, has called [New].
//   - A process that recovers devices takes all of them that belong to its
//     tenant: there must not be two.
//   - Remove cannot see programs in other PID namespaces that have the disk
//     open without having mounted it.
package tcmu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/overlaybd-go/overlaybd/backend"
	"github.com/overlaybd-go/overlaybd/backend/internal/roster"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/configfs"
	"github.com/overlaybd-go/overlaybd/backend/tcmu/internal/genl"
)

// never is a time-out of the SCSI layer that is longer than any outage: 24
// days, the reference's.
const never = 2147483 * time.Second

// letGoTimeout is how long it may take to fail the few commands by which the
// kernel gets to know a disk or takes leave of it.
const letGoTimeout = 30 * time.Second

// Options says what devices are like. The zero value is usable.
type Options struct {
	// Tenant keeps apart the devices of several users of the machine, who may
	// give them the same ids. 0 is none, as in the reference.
	Tenant int

	// QueueDepth is how many commands a device handles at the same time; 64 if
	// zero.
	QueueDepth int

	// DataArea is the memory through which the data of a device's commands
	// goes, in bytes, rounded up to MiB; 16 MiB if zero. The kernel allocates
	// it as needed, and has commands wait when it is full.
	DataArea int64

	// CommandTimeout is after how long the kernel fails a command that was not
	// answered, in whole seconds; 0 is never. It also runs while no process
	// serves the device.
	CommandTimeout time.Duration

	// DiskTimeout is after how long the SCSI layer resets a disk that does not
	// answer, in whole seconds; 24 days if zero.
	DiskTimeout time.Duration

	// Config returns what the reference's daemon needs to know to serve the
	// device id, the path of its config.v1.json; it may be nil.
	Config func(id string) string

	// Adopt opens the volume of a device that another program makes, with the
	// configuration that program gave it. If it is nil such devices are left
	// to others to serve.
	Adopt func(ctx context.Context, id, config string) (backend.Volume, error)

	// Logger takes what cannot be returned; it may be nil.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	if o.QueueDepth <= 0 {
		o.QueueDepth = 64
	}
	if o.DataArea <= 0 {
		o.DataArea = 16 << 20
	}
	o.DataArea = (o.DataArea + 1<<20 - 1) &^ (1<<20 - 1)
	if o.DiskTimeout <= 0 {
		o.DiskTimeout = never
	}
	if o.Config == nil {
		o.Config = func(string) string { return "" }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// An Exporter makes SCSI disks.
type Exporter struct {
	opts   Options
	tree   configfs.Tree
	events *genl.Conn
	loops  sync.WaitGroup // the goroutines that receive and answer events

	devices roster.Roster[*Device]

	mu        sync.Mutex            // guards unclaimed; a device is looked up under it
	unclaimed map[string]genl.Event // of devices, by id, that others make
}

var (
	_ backend.Exporter  = (*Exporter)(nil)
	_ backend.Recoverer = (*Exporter)(nil)
)

// New returns an exporter, ready to serve the kernel's events. Whoever still
// waits in the kernel for a process that died is let go.
func New(opts Options) (*Exporter, error) {
	opts.setDefaults()
	if opts.Tenant < 0 {
		return nil, fmt.Errorf("tenant %d is negative", opts.Tenant)
	}
	if err := Available(); err != nil {
		return nil, err
	}
	events, err := genl.Dial()
	if err != nil {
		return nil, err
	}
	e := &Exporter{
		opts:      opts,
		tree:      configfs.Kernel,
		events:    events,
		unclaimed: make(map[string]genl.Event),
	}
	e.loops.Go(e.receive)
	if err := e.letGo(); err != nil {
		return nil, errors.Join(err, e.stop())
	}
	return e, nil
}

// letGo makes threads of dead processes end that wait for answers to events or
// to commands.
func (e *Exporter) letGo() error {
	if err := e.tree.ResetEvents(); err != nil {
		return err
	}
	all, err := e.tree.Backstores(configfs.HBAOf(e.opts.Tenant))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), letGoTimeout)
	defer cancel()
	return e.tree.LetGo(ctx, all)
}

// Export makes the device id, a *[Device]. An id is a file name of up to 251
// bytes.
func (e *Exporter) Export(ctx context.Context, id string, v backend.Volume) (backend.Device, error) {
	d, err := e.export(ctx, id, v)
	if err != nil {
		return nil, fmt.Errorf("export device %q: %w", id, err)
	}
	return d, nil
}

func (e *Exporter) export(ctx context.Context, id string, v backend.Volume) (*Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkID(id); err != nil {
		return nil, err
	}
	params, err := e.params(id, v)
	if err != nil {
		return nil, err
	}
	d := e.newDevice(ctx, id, v)
	made, err := e.devices.Add(id, d)
	if err != nil {
		d.cancel()
		return nil, err
	}
	defer made()
	if err := d.create(ctx, params); err != nil {
		d.cancel()
		e.forget(d)
		return nil, err
	}
	return d, nil
}

func checkID(id string) error {
	if id == "" || len(id) > configfs.MaxID || strings.ContainsAny(id, "/\x00\n") {
		return fmt.Errorf("id is not a file name of up to %d bytes: %w", configfs.MaxID, fs.ErrInvalid)
	}
	return nil
}

func (e *Exporter) params(id string, v backend.Volume) (configfs.Params, error) {
	p := configfs.Params{
		Config:         e.opts.Config(id),
		Size:           v.Size(),
		DataArea:       e.opts.DataArea,
		CommandTimeout: e.opts.CommandTimeout,
	}
	if p.Size <= 0 || p.Size%backend.SectorSize != 0 {
		return p, fmt.Errorf("volume of %d bytes: not whole sectors", p.Size)
	}
	if len(p.Config) > configfs.MaxConfig || strings.ContainsAny(p.Config, ",\x00\n") {
		return p, fmt.Errorf("configuration %q: too long for the kernel, or with a comma or line break", p.Config)
	}
	return p, nil
}

func (e *Exporter) forget(d *Device) { e.devices.Drop(d.ID(), d) }

// Close removes every device that e has made, and abandons those it adopted. It
// fails with backend.ErrBusy, and leaves those devices as they are, while some
// are in use; the exporter is closed when it returns nil, and makes no new
// device as soon as it is called.
func (e *Exporter) Close() error {
	err := e.devices.Close(func(d *Device) error {
		if d.foreign {
			return d.abandon()
		}
		return d.Remove(context.Background())
	})
	if err != nil {
		return err
	}
	return errors.Join(e.tree.DestroyHBA(configfs.HBAOf(e.opts.Tenant)), e.stop())
}

// Abandon stops serving and closes the volumes, but leaves the devices to the
// next process: whoever uses them waits for its Resume.
func (e *Exporter) Abandon() error {
	return errors.Join(e.devices.Close((*Device).abandon), e.tree.DestroyHBA(configfs.HBAOf(e.opts.Tenant)), e.stop())
}

// stop ends the receipt of events.
func (e *Exporter) stop() error {
	err := e.events.Close()
	e.loops.Wait()
	return err
}
