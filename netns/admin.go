// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// CAP_SYS_ADMIN is needed for two calls only: entering a network namespace, and opening a program by its id. A process that lives long, as the helper
// does, keeps it out of effect otherwise: no mistake with a path, a mount or a namespace can then be made with it.

// admin is CAP_SYS_ADMIN's bit in a capability set.
const admin = 1 << unix.CAP_SYS_ADMIN

// relinquished says that CAP_SYS_ADMIN is in effect on no thread but inside asAdmin.
var relinquished atomic.Bool

// RelinquishAdmin takes CAP_SYS_ADMIN out of effect on every thread of this process, for good. It stays permitted: the functions of this package take
// it back on their own thread, for the calls that need it. It works in programs without cgo only.
func RelinquishAdmin() error {
	hdr, data, err := capabilitySets()
	if err != nil {
		return err
	}
	data[0].Effective &^= admin
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return fmt.Errorf("take CAP_SYS_ADMIN out of effect: %w", errno)
	}
	relinquished.Store(true)
	return nil
}

// capabilitySets are the calling thread's.
func capabilitySets() (hdr unix.CapUserHeader, data [2]unix.CapUserData, err error) {
	hdr.Version = unix.LINUX_CAPABILITY_VERSION_3
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return hdr, data, fmt.Errorf("read capabilities: %w", err)
	}
	return hdr, data, nil
}

// setAdmin changes what is in effect on the calling thread.
func setAdmin(on bool) error {
	hdr, data, err := capabilitySets()
	if err != nil {
		return err
	}
	if on && data[0].Permitted&admin == 0 {
		return errors.New("CAP_SYS_ADMIN is not permitted: add SYS_ADMIN to the container's capabilities")
	}
	data[0].Effective &^= admin
	if on {
		data[0].Effective |= admin
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("change CAP_SYS_ADMIN: %w", err)
	}
	return nil
}

// asAdmin runs f with CAP_SYS_ADMIN in effect on this thread, and on no other.
func asAdmin(f func() error) error {
	if !relinquished.Load() {
		return f()
	}
	runtime.LockOSThread()
	if err := setAdmin(true); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err := f()
	if lowered := setAdmin(false); lowered != nil {
		return errors.Join(err, lowered) // still locked: the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// programByID opens a loaded program.
func programByID(id ebpf.ProgramID) (prog *ebpf.Program, err error) {
	err = asAdmin(func() error { prog, err = ebpf.NewProgramFromID(id); return err })
	return prog, err
}
