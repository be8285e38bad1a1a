// SPDX-License-Identifier: Apache-2.0

// Package hint hears of what may have taken a pod's programs away, so that nobody has to
// wait for the next round: cgroups that are made and removed (inotify), interfaces,
// qdiscs and filters that are removed in pods' network namespaces (netlink), pods that
// the plugin enrols (inotify on the pins).
//
// Invariant: a hint is not a fact. What is lost, by a queue that was full or a kernel
// that does not tell, costs the time to the next round and nothing else; who gets one
// looks for himself.
package hint

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/netns"
)

// Hint says where to look.
type Hint struct {
	// Cgroup: one that may be a pod's was made or removed.
	Cgroup bool
	// New: the plugin has enrolled a pod, or let one go.
	New bool
	// Netns is a pod's network namespace, by its cookie, in which something was removed.
	Netns uint64
}

// Watcher gives hints on C.
type Watcher struct {
	C <-chan Hint

	log   *slog.Logger
	files *fsnotify.Watcher // nil: this process may not watch
	links *os.File          // nil: this process may not listen
	ask   *netlink.Handle   // of the same network namespace as links
	pins  string
	to    chan Hint
	stop  chan struct{}
	wait  sync.WaitGroup

	mu      sync.Mutex
	dirs    map[string]bool  // watched, beside pins
	cookies map[int32]uint64 // pods by the id that their network namespace has in ours
	asked   map[uint64]bool  // pods whose id was asked for
}

// New makes a watcher, in the network namespace of the calling thread. pins is the
// directory in which attachments are pinned. What this process may not watch, it does not.
func New(pins string, log *slog.Logger) *Watcher {
	files, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("cgroups that are made anew are found at the next round only: raise fs.inotify.max_user_instances", "err", err)
	}
	to := make(chan Hint, 64)
	w := &Watcher{
		C: to, to: to, log: log, files: files, pins: pins, stop: make(chan struct{}),
		dirs: make(map[string]bool), cookies: make(map[int32]uint64), asked: make(map[uint64]bool),
	}
	if w.links, err = listen(); err == nil {
		w.ask, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		log.Info("what is removed in pods' network namespaces is found at the next round only", "err", err)
	}
	if w.files != nil {
		w.wait.Go(w.readFiles)
	}
	if w.links != nil {
		w.wait.Go(w.readLinks)
	}
	return w
}

// Close ends it.
func (w *Watcher) Close() error {
	close(w.stop)
	var err error
	if w.files != nil {
		err = w.files.Close()
	}
	if w.links != nil {
		err = errors.Join(err, w.links.Close())
	}
	w.wait.Wait()
	if w.ask != nil {
		w.ask.Close()
	}
	return err
}

// Follow tells the watcher which pods there are, and where their cgroups are.
func (w *Watcher) Follow(pods []netns.Known, cgroup func(inode uint64) (string, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	want := map[string]bool{w.pins: true}
	alive := make(map[uint64]bool)
	for _, p := range pods {
		alive[p.NetnsCookie] = true
		if dir, err := cgroup(p.Cgroup); err == nil {
			want[filepath.Dir(dir)] = true
		} else {
			for dir := range w.dirs {
				want[dir] = true // it may come back there
			}
		}
		if !w.asked[p.NetnsCookie] && p.NetnsPath != "" {
			w.asked[p.NetnsCookie] = true
			if id, ok := w.idOf(p.NetnsPath); ok {
				w.cookies[id] = p.NetnsCookie
			}
		}
	}
	for id, cookie := range w.cookies {
		if !alive[cookie] {
			delete(w.cookies, id)
			delete(w.asked, cookie)
		}
	}
	if w.files == nil {
		return
	}
	for dir := range w.dirs {
		if !want[dir] {
			_ = w.files.Remove(dir) // it may be gone
			delete(w.dirs, dir)
		}
	}
	for dir := range want {
		if w.dirs[dir] {
			continue
		}
		if err := w.files.Add(dir); err == nil {
			w.dirs[dir] = true
		} else if !errors.Is(err, os.ErrNotExist) {
			w.log.Warn("a directory is not watched: what happens there is found at the next round", "dir", dir, "err", err)
		}
	}
}

// idOf is the id of a network namespace in ours; the kernel gives one to each that an
// interface of ours leads to.
func (w *Watcher) idOf(path string) (int32, bool) {
	if w.ask == nil {
		return 0, false
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	id, err := w.ask.GetNetNsIdByFd(int(f.Fd()))
	return int32(id), err == nil && id >= 0
}

// give passes a hint on; a reader that has many to read will look anyway.
func (w *Watcher) give(h Hint) {
	select {
	case w.to <- h:
	default:
	}
}

func (w *Watcher) readFiles() {
	for {
		select {
		case <-w.stop:
			return
		case ev, ok := <-w.files.Events:
			if !ok {
				return
			}
			if !ev.Has(fsnotify.Create) && !ev.Has(fsnotify.Remove) {
				continue
			}
			w.mu.Lock()
			if ev.Has(fsnotify.Remove) && w.dirs[ev.Name] {
				delete(w.dirs, ev.Name) // the watch went with it
			}
			w.mu.Unlock()
			switch {
			case filepath.Dir(ev.Name) == w.pins:
				w.give(Hint{New: true})
			case strings.Contains(filepath.Base(ev.Name), "pod"):
				w.give(Hint{Cgroup: true})
			}
		case err, ok := <-w.files.Errors:
			if !ok {
				return
			}
			w.log.Debug("watching cgroups", "err", err)
			w.give(Hint{Cgroup: true, New: true}) // such as a queue that was full
		}
	}
}
