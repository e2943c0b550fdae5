// SPDX-License-Identifier: Apache-2.0

package genl

import (
	"testing"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

func message(t testing.TB, command uint8, attrs func(*netlink.AttributeEncoder)) genetlink.Message {
	t.Helper()
	enc := netlink.NewAttributeEncoder()
	attrs(enc)
	b, err := enc.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return genetlink.Message{Header: genetlink.Header{Command: command, Version: version}, Data: b}
}

func TestParse(t *testing.T) {
	whole := func(e *netlink.AttributeEncoder) {
		e.String(attrName, "tcm-user/1/dev_7/overlaybd/")
		e.Uint32(attrMinor, 7)
		e.Uint32(attrDeviceID, 42)
	}
	for _, k := range []Kind{Added, Removed, Reconfigured} {
		got, ok := parse(message(t, uint8(k), whole))
		if want := (Event{k, "tcm-user/1/dev_7/overlaybd/", 7, 42}); !ok || got != want {
			t.Errorf("got %+v, %v, want %+v", got, ok, want)
		}
	}
	for name, m := range map[string]genetlink.Message{
		"an answer":  message(t, uint8(Added)+doneOffset, whole),
		"without id": message(t, uint8(Added), func(e *netlink.AttributeEncoder) { e.Uint32(attrMinor, 7) }),
		"short id":   message(t, uint8(Added), func(e *netlink.AttributeEncoder) { e.Uint8(attrDeviceID, 1) }),
		"cut short":  {Header: genetlink.Header{Command: uint8(Added)}, Data: []byte{8, 0, 8}},
	} {
		if e, ok := parse(m); ok {
			t.Errorf("%s: parsed as %+v", name, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(uint8(1), message(f, 1, func(e *netlink.AttributeEncoder) { e.Uint32(attrDeviceID, 42) }).Data)
	f.Fuzz(func(_ *testing.T, command uint8, data []byte) {
		parse(genetlink.Message{Header: genetlink.Header{Command: command}, Data: data})
	})
}
