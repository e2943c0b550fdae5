// SPDX-License-Identifier: Apache-2.0

package fetchertest

// A Fault is what goes wrong with one request.
type Fault struct {
	// At is where it goes wrong; the zero value means wherever blob bytes
	// come from: Storage of a registry that redirects, Origin otherwise.
	At Endpoint

	// Times is how many requests suffer; 0 means one, -1 all.
	Times int

	Status       int    // answer this status without a blob
	RetryAfter   string // with this Retry-After header
	Location     string // and this Location header
	ContentRange string // claim this Content-Range
	IgnoreRange  bool   // answer 200 with the whole blob
	Reset        bool   // reset the connection instead of answering
	Hang         bool   // send nothing, not even a header, until Release

	// Body says what happens to the body after its first After bytes.
	Body  BodyFault
	After int64
}

// BodyFault is a way to spoil a body.
type BodyFault int

// The ways to spoil a body.
const (
	Intact  BodyFault = iota
	Short             // an honest Content-Length of only After bytes
	Cut               // the connection breaks
	Stall             // nothing more comes until Release
	Corrupt           // one bit of the byte at After is flipped
)

// Fault arranges for f to happen. Faults of one endpoint happen in the order
// they were arranged in.
func (r *Registry) Fault(f Fault) {
	if f.At == "" {
		f.At = Origin
		if r.opts.Redirect {
			f.At = Storage
		}
	}
	if f.Times == 0 {
		f.Times = 1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &f)
}

// ClearFaults forgets the faults that have not happened yet.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// Release lets requests that hang or stall go on. A request that is in the log
// is let go, even where it has yet to get to its fault.
func (r *Registry) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.release)
	r.release = make(chan struct{})
}

// takeFault returns what is to go wrong with the next request at e.
func (r *Registry) takeFault(e Endpoint) Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, f := range r.faults {
		if f.At != e {
			continue
		}
		if f.Times > 0 {
			f.Times--
		}
		if f.Times == 0 {
			r.faults = append(r.faults[:i:i], r.faults[i+1:]...)
		}
		return *f
	}
	return Fault{}
}

// hold waits until Release, the end of the test or of the request.
func (x *exchange) hold() {
	select {
	case <-x.release:
	case <-x.r.done:
	case <-x.req.Context().Done():
	}
}
