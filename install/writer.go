// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"kmesh/install/conflist"
	"kmesh/install/place"
)

// witness finds out who else writes into a folder. The kernel tells it (fanotify) to a process with CAP_SYS_ADMIN in the node's pid namespace; without
// that, the processes that hold a file of the folder open are looked for; and without them, there is what the file itself tells.
type witness struct {
	f *os.File // nil where fanotify is not to be had

	mu   sync.Mutex
	last string // the last foreign writer
}

// watchWriters begins to watch a folder. It never fails: it only knows less.
func watchWriters(dir string) *witness {
	w := &witness{}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return w
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_MODIFY|unix.FAN_CLOSE_WRITE|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, dir); err != nil {
		unix.Close(fd)
		return w
	}
	w.f = os.NewFile(uintptr(fd), "fanotify")
	go w.read()
	return w
}

func (w *witness) close() {
	if w != nil && w.f != nil {
		w.f.Close()
	}
}

const fanotifyEvent = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))

func (w *witness) read() {
	buf := make([]byte, 64*fanotifyEvent)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= fanotifyEvent; {
			length := int(binary.NativeEndian.Uint32(b))
			fd := int32(binary.NativeEndian.Uint32(b[16:]))
			pid := int(int32(binary.NativeEndian.Uint32(b[20:])))
			if fd >= 0 {
				unix.Close(int(fd))
			}
			if pid != os.Getpid() && pid > 0 {
				if s := process(pid); s != "" {
					w.mu.Lock()
					w.last = s
					w.mu.Unlock()
				}
			}
			if length < fanotifyEvent || length > len(b) {
				break
			}
			b = b[length:]
		}
	}
}

// who names the other writer of a file, as far as can be found.
func (w *witness) who(path string) string {
	var parts []string
	if w != nil {
		// The kernel's word may come a moment after the file's change was seen.
		for deadline := time.Now().Add(100 * time.Millisecond); w.f != nil && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			w.mu.Lock()
			known := w.last != ""
			w.mu.Unlock()
			if known {
				break
			}
		}
		w.mu.Lock()
		if w.last != "" {
			parts = append(parts, w.last)
		}
		w.mu.Unlock()
	}
	if len(parts) == 0 {
		if s := holder(filepath.Dir(path)); s != "" {
			parts = append(parts, s)
		}
	}
	if len(parts) == 0 {
		parts = append(parts, "a process that is not to be seen from here")
	}
	return strings.Join(append(parts, traces(path)...), ", ")
}

// traces is what a file tells of who wrote it.
func traces(path string) []string {
	data, info, err := place.Read(path, conflist.MaxSize)
	if err != nil {
		return []string{"the file is " + reason(err)}
	}
	var out []string
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
		out = append(out, fmt.Sprintf("the file is uid %d's", st.Uid))
	}
	conf, err := conflist.ParseList(data)
	if err != nil {
		return out
	}
	if stamp := stampIn(conf); stamp != nil {
		out = append(out, fmt.Sprintf("kmesh-install of owner %q", stamp.Owner))
	}
	var types []string
	for _, p := range conf.Plugins {
		types = append(types, p.Type)
	}
	return append(out, "the file's chain is "+strings.Join(types, ", "))
}

func reason(err error) string {
	if os.IsNotExist(err) {
		return "gone"
	}
	return "not to be read"
}

var podUID = regexp.MustCompile(`pod([0-9a-f]{8}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{12})`)

// process describes one; empty when it has gone.
func process(pid int) string {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	name, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return ""
	}
	s := fmt.Sprintf("process %d (%s", pid, strings.TrimSpace(string(name)))
	if exe, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
		s += ", " + exe
	}
	if cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup")); err == nil {
		if m := podUID.FindSubmatch(cgroup); m != nil {
			s += ", of pod " + strings.ReplaceAll(string(m[1]), "_", "-")
		}
	}
	return s + ")"
}

// holder looks for a process that has a file of the folder open for writing.
func holder(dir string) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	self := strconv.Itoa(os.Getpid())
	for _, fd := range fds {
		parts := strings.Split(fd, "/")
		if parts[2] == self {
			continue
		}
		target, err := os.Readlink(fd)
		if err != nil || filepath.Dir(target) != dir {
			continue
		}
		info, err := os.ReadFile(filepath.Join("/proc", parts[2], "fdinfo", parts[4]))
		if err != nil || !writable(string(info)) {
			continue
		}
		if pid, err := strconv.Atoi(parts[2]); err == nil {
			return process(pid)
		}
	}
	return ""
}

// writable reads the flags of an open file.
func writable(fdinfo string) bool {
	for line := range strings.Lines(fdinfo) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}
