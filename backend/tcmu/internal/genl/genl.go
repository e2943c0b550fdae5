// SPDX-License-Identifier: Apache-2.0

// Package genl speaks the generic netlink protocol of TCM user: the kernel
// tells of devices that came and went, and waits for an answer.
//
// The one thing to know: whoever enables or removes a device waits in the
// kernel, unkillable, until every such [Event] of the process is answered by
// [Conn.Done]. Receive must therefore always be running, and the answer come
// from elsewhere.
package genl

import (
	"errors"
	"fmt"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A Kind is what happened to a device.
type Kind uint8

// The kinds of events, by their number in <linux/target_core_user.h>.
const (
	Added        Kind = 1
	Removed      Kind = 2
	Reconfigured Kind = 3
)

const (
	familyName = "TCM-USER"
	groupName  = "config"
	version    = 2

	doneOffset  = 3 // from a kind to the command that answers it
	setFeatures = 7

	attrName      = 1 // string
	attrMinor     = 2 // uint32
	attrStatus    = 7 // int32
	attrDeviceID  = 8 // uint32
	attrCanAnswer = 9 // uint8

	// receiveBuffer holds some thousands of events, in bytes. In the default
	// of 212 KiB, events of fifty devices made at once get lost, and who waits
	// for them waits for ever.
	receiveBuffer = 4 << 20
)

// An Event is news of one device.
type Event struct {
	Kind  Kind
	Name  string // tcm-user/<hba>/<device>/<configuration>
	Minor uint32 // of the UIO device that the ring is reached by
	ID    uint32 // names the device in the answer
}

// A Conn receives events and answers them.
type Conn struct {
	events, commands *genetlink.Conn
	family           uint16
}

// Dial subscribes to events. It fails with fs.ErrNotExist where the kernel
// module is not loaded.
func Dial() (*Conn, error) {
	commands, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	f, err := commands.GetFamily(familyName)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink family %s: %w", familyName, err), commands.Close())
	}
	events, err := subscribe(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to %s: %w", familyName, err), commands.Close())
	}
	c := &Conn{events: events, commands: commands, family: f.ID}
	if err := c.execute(setFeatures, func(e *netlink.AttributeEncoder) { e.Uint8(attrCanAnswer, 1) }); err != nil {
		return nil, errors.Join(fmt.Errorf("set features of %s: %w", familyName, err), c.Close())
	}
	return c, nil
}

func subscribe(f genetlink.Family) (*genetlink.Conn, error) {
	for _, g := range f.Groups {
		if g.Name != groupName {
			continue
		}
		c, err := genetlink.Dial(nil)
		if err != nil {
			return nil, err
		}
		err = errors.Join(c.SetReadBuffer(receiveBuffer), c.SetOption(netlink.NoENOBUFS, true), c.JoinGroup(g.ID))
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
	return nil, fmt.Errorf("no group %s", groupName)
}

// Receive waits for events. It fails once the Conn is closed.
func (c *Conn) Receive() ([]Event, error) {
	msgs, _, err := c.events.Receive()
	if err != nil {
		return nil, err
	}
	var events []Event
	for _, m := range msgs {
		if e, ok := parse(m); ok {
			events = append(events, e)
		}
	}
	return events, nil
}

// parse returns false for what is no event, or none that can be answered.
func parse(m genetlink.Message) (Event, bool) {
	e := Event{Kind: Kind(m.Header.Command)}
	if e.Kind < Added || e.Kind > Reconfigured {
		return Event{}, false
	}
	d, err := netlink.NewAttributeDecoder(m.Data)
	if err != nil {
		return Event{}, false
	}
	found := false
	for d.Next() {
		switch d.Type() {
		case attrName:
			e.Name = d.String()
		case attrMinor:
			e.Minor = d.Uint32()
		case attrDeviceID:
			e.ID, found = d.Uint32(), true
		}
	}
	return e, found && d.Err() == nil
}

// Done answers e: the caller in the kernel returns with errno, or without an
// error if that is 0.
func (c *Conn) Done(e Event, errno unix.Errno) error {
	return c.execute(uint8(e.Kind)+doneOffset, func(enc *netlink.AttributeEncoder) {
		enc.Int32(attrStatus, -int32(errno))
		enc.Uint32(attrDeviceID, e.ID)
	})
}

func (c *Conn) execute(command uint8, attrs func(*netlink.AttributeEncoder)) error {
	enc := netlink.NewAttributeEncoder()
	attrs(enc)
	data, err := enc.Encode()
	if err != nil {
		return err
	}
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: version}, Data: data}
	_, err = c.commands.Execute(m, c.family, netlink.Request|netlink.Acknowledge)
	return err
}

// Close ends the subscription; Receive returns.
func (c *Conn) Close() error {
	return errors.Join(c.events.Close(), c.commands.Close())
}
