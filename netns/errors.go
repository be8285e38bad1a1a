// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"strings"
)

// Code is the CNI error code of an enrolment failure.
type Code uint

const (
	// CodeNotReady: the programs are not loaded, or no snapshot is live yet. Trying again helps.
	CodeNotReady Code = 110
	// CodeCgroup: the pod's cgroup was not found, or is not one that may be governed.
	CodeCgroup Code = 111
	// CodeAmbiguous: more than one cgroup answers to the pod's UID.
	CodeAmbiguous Code = 112
	// CodeUnsupported: the kernel or the node's set-up lacks something enrolment needs.
	CodeUnsupported Code = 113
	// CodeForeign: cgroup programs of somebody else leave no room for ours.
	CodeForeign Code = 114
	// CodeFull: a table of the programs has no room for the pod. 115 is package cni's.
	CodeFull Code = 116
)

// maxMessage bounds a message: kubelet shows it in a pod event.
const maxMessage = 200

// Error is an enrolment failure: one sentence that names the remedy.
type Error struct {
	Code Code
	Msg  string
	Err  error // the cause, for errors.Is; its text is already in Msg where it helps
}

func (e *Error) Error() string { return e.Msg }

func (e *Error) Unwrap() error { return e.Err }

// CodeOf gives the code of the first *Error in err's chain, 0 when there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func fail(code Code, cause error, format string, args ...any) *Error {
	msg := strings.ToValidUTF8(fmt.Sprintf(format, args...), "?")
	if len(msg) > maxMessage {
		msg = strings.ToValidUTF8(msg[:maxMessage-3], "") + "..."
	}
	return &Error{Code: code, Msg: msg, Err: cause}
}

// short keeps the end of a path, which is what tells two cgroups apart, so that a message fits its bound.
func short(path string) string {
	const keep = 72
	if len(path) <= keep {
		return fmt.Sprintf("%q", path)
	}
	return fmt.Sprintf("%q", "..."+strings.ToValidUTF8(path[len(path)-keep:], ""))
}
