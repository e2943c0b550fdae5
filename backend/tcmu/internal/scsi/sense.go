// SPDX-License-Identifier: Apache-2.0

package scsi

import (
	"errors"
	"fmt"
)

// The statuses that a command ends with.
const (
	Good           = 0x00
	CheckCondition = 0x02
)

// A Sense is the reason of a refusal: the sense key, and the additional sense
// code with its qualifier (SPC-4, 4.5).
type Sense struct {
	Key  byte
	Code uint16
}

// What commands are refused with.
var (
	// LUN COMMUNICATION FAILURE is what Linux makes EIO of, at once; the codes
	// of a medium error become ENODATA or are tried five times more.
	errVolume error = Sense{keyNotReady, 0x0800}

	errOpcode       error = Sense{keyIllegalRequest, 0x2000} // INVALID COMMAND OPERATION CODE
	errRange        error = Sense{keyIllegalRequest, 0x2100} // LOGICAL BLOCK ADDRESS OUT OF RANGE
	errField        error = Sense{keyIllegalRequest, 0x2400} // INVALID FIELD IN CDB
	errParameter    error = Sense{keyIllegalRequest, 0x2600} // INVALID FIELD IN PARAMETER LIST
	errListLength   error = Sense{keyIllegalRequest, 0x1a00} // PARAMETER LIST LENGTH ERROR
	errSavedPages   error = Sense{keyIllegalRequest, 0x3900} // SAVING PARAMETERS NOT SUPPORTED
	errWriteProtect error = Sense{keyDataProtect, 0x2700}    // WRITE PROTECTED
)

const (
	keyNotReady       = 0x02
	keyIllegalRequest = 0x05
	keyDataProtect    = 0x07
)

func (s Sense) Error() string {
	return fmt.Sprintf("sense key %#02x, code %02x/%02x", s.Key, s.Code>>8, s.Code&0xff)
}

// Append appends the sense data in fixed format.
func (s Sense) Append(b []byte) []byte {
	return append(b, 0x70, 0, s.Key, 0, 0, 0, 0, 10, 0, 0, 0, 0, byte(s.Code>>8), byte(s.Code), 0, 0, 0, 0)
}

// SenseOf returns what to tell the initiator of an error of Do. Errors of the
// volume become an I/O error.
func SenseOf(err error) Sense {
	var s Sense
	if !errors.As(err, &s) {
		errors.As(errVolume, &s)
	}
	return s
}
