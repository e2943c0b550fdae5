// SPDX-License-Identifier: Apache-2.0

package blockd_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/overlaybd-go/overlaybd/backend"
)

// A kernel holds devices that outlive the process which serves them.
type kernel struct {
	dir string // of their nodes

	mu      sync.Mutex // guards all below
	objects map[string]*object
}

// An object is a device, served or not.
type object struct {
	config string // of one that another program has made
	busy   bool
	served *served
}

func newKernel(t *testing.T) *kernel {
	return &kernel{dir: t.TempDir(), objects: make(map[string]*object)}
}

// add makes a device as an earlier process has left it.
func (k *kernel) add(id, config string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.objects[id] = &object{config: config}
}

func (k *kernel) setBusy(id string, busy bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.objects[id].busy = busy
}

// copy returns what would be left if the process were killed now.
func (k *kernel) copy() *kernel {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &kernel{dir: k.dir, objects: make(map[string]*object)}
	for id, o := range k.objects {
		c.objects[id] = &object{config: o.config, busy: o.busy}
	}
	return c
}

func (k *kernel) ids() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.objects))
}

// A process is an exporter of the kernel's devices.
type process struct {
	*kernel
	before, after func() // an export or a removal
}

var (
	_ backend.Exporter  = (*process)(nil)
	_ backend.Recoverer = (*process)(nil)
)

func (p *process) Export(_ context.Context, id string, v backend.Volume) (backend.Device, error) {
	p.call(p.before)
	defer p.call(p.after)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.objects[id] != nil {
		return nil, fs.ErrExist
	}
	p.objects[id] = &object{}
	return p.serve(id, v)
}

func (p *process) call(hook func()) {
	if hook != nil {
		hook()
	}
}

// serve must be called with mu held.
func (p *process) serve(id string, v backend.Volume) (*served, error) {
	d := &served{p: p, id: id, vol: v, done: make(chan struct{})}
	p.objects[id].served = d
	return d, os.WriteFile(d.Path(), nil, 0o600)
}

// Left, Resume and Discard are a backend.Recoverer's.
func (p *process) Left(context.Context) (ids []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, o := range p.objects {
		if o.served == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (p *process) Resume(_ context.Context, id string, v backend.Volume) (backend.Device, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.objects[id] == nil {
		return nil, backend.ErrGone
	}
	return p.serve(id, v)
}

func (p *process) Discard(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.objects[id]; o != nil && o.busy {
		return backend.ErrBusy
	}
	delete(p.objects, id)
	return nil
}

// mortal is a process whose devices end with it.
type mortal struct{ backend.Exporter }

// Config returns what another program has given the device.
func (p *process) Config(id string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.objects[id].config, nil
}

// served is a device that a process serves.
type served struct {
	p    *process
	id   string
	vol  backend.Volume
	once sync.Once
	done chan struct{}
	err  error // set before done is closed
}

func (d *served) ID() string            { return d.id }
func (d *served) Path() string          { return filepath.Join(d.p.dir, d.id) }
func (d *served) Done() <-chan struct{} { return d.done }

func (d *served) Err() error {
	select {
	case <-d.done:
		return d.err
	default:
		return nil
	}
}

func (d *served) Remove(context.Context) error {
	d.p.call(d.p.before)
	defer d.p.call(d.p.after)
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if o := d.p.objects[d.id]; o != nil && o.busy {
		return backend.ErrBusy
	}
	delete(d.p.objects, d.id)
	err := d.vol.Close()
	d.once.Do(func() { close(d.done) })
	return err
}

// vanish removes the device behind its server's back.
func (d *served) vanish() {
	d.p.mu.Lock()
	delete(d.p.objects, d.id)
	d.p.mu.Unlock()
	d.once.Do(func() { d.err = errors.New("removed from outside"); close(d.done) })
}
