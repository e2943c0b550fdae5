// SPDX-License-Identifier: Apache-2.0

// Package job is what the host and the guest's init tell each other.
package job

// A Job is what a guest does between boot and power-off.
type Job struct {
	Modules  []string // files, in an order in which they can be loaded
	Commands []Command
}

// A Command is run with its output on the port to the host.
type Command struct {
	Args []string // Args[0] is a path
	Env  []string
}

// ExitMark starts the line that holds the exit code of the job: that of the
// first command that failed, or 0. It is the last line of the output.
const ExitMark = "guest-exit: "
