// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"kmesh/helper/mesh"
)

// rescanEvery is how often the directory is read without being told to: the
// kernel may drop events when very many come at once.
const rescanEvery = 10 * time.Second

// FilesOptions configure a directory of files as a source.
type FilesOptions struct {
	// Dir holds *.yaml and *.json files; the others are not looked at.
	Dir string
	// Gather is how long to wait for more events after the first; 50 ms if zero.
	Gather time.Duration
	Logger *slog.Logger
}

// Files is the source that reads a directory.
type Files struct {
	opts FilesOptions
	log  *slog.Logger

	// Only Run's goroutine uses these.
	files     map[string]*file
	delivered bool
	last      []*parsed

	mu     sync.Mutex
	status Status
}

var _ Source = (*Files)(nil)

// NewFiles makes the source; it does no I/O.
func NewFiles(opts FilesOptions) *Files {
	if opts.Gather <= 0 {
		opts.Gather = 50 * time.Millisecond
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	return &Files{
		opts:   opts,
		log:    opts.Logger.With("xds", opts.Dir),
		files:  map[string]*file{},
		status: Status{Source: opts.Dir, Since: time.Now()},
	}
}

// Status implements Source.
func (f *Files) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.Problems = slices.Clone(s.Problems)
	s.Types = slices.Clone(s.Types)
	return s
}

// Run reads the directory, and again whenever it changes, until ctx ends.
func (f *Files) Run(ctx context.Context, c Consumer) error {
	info, err := os.Stat(f.opts.Dir)
	if err != nil {
		return fmt.Errorf("xds directory: %w: create it, or name another one", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("xds directory: %s is not a directory", f.opts.Dir)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.opts.Dir, err)
	}
	defer w.Close()
	dir := filepath.Clean(f.opts.Dir)
	if err := w.Add(dir); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	// The directory itself may be exchanged: a mount that is a symbolic link, a
	// directory that is renamed into place.
	parent := filepath.Dir(dir)
	if err := w.Add(parent); err != nil {
		f.log.Warn("the parent directory cannot be watched: an exchanged directory is noticed late", "dir", parent, "err", err)
	}
	f.scan(ctx, c)

	tick := time.NewTicker(rescanEvery)
	defer tick.Stop()
	gather := time.NewTimer(0)
	<-gather.C
	defer gather.Stop()
	pending := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-w.Events:
			if !ok {
				return errors.New("watch: closed")
			}
			if filepath.Clean(ev.Name) == dir {
				// Old watches follow the old directory.
				_ = w.Remove(dir)
				if err := w.Add(dir); err != nil {
					f.log.Warn("the directory cannot be watched", "err", err)
				}
			} else if filepath.Dir(ev.Name) != dir {
				continue
			}
			if !pending {
				gather.Reset(f.opts.Gather)
				pending = true
			}
		case err := <-w.Errors:
			f.log.Warn("watch", "err", err)
			if !pending {
				gather.Reset(f.opts.Gather)
				pending = true
			}
		case <-gather.C:
			pending = false
			f.scan(ctx, c)
		case <-tick.C:
			f.scan(ctx, c)
			_ = w.Add(dir) // if it was gone and is back
		}
	}
}

// Load reads the directory once and delivers what is in it, without watching it.
// What is wrong with single files is in Status; files that cannot be used keep all
// of the others from being delivered, as in Run.
func (f *Files) Load(ctx context.Context, c Consumer) error {
	info, err := os.Stat(f.opts.Dir)
	if err != nil {
		return fmt.Errorf("xds directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("xds directory: %s is not a directory", f.opts.Dir)
	}
	f.scan(ctx, c)
	return nil
}

// scan reads what has changed, and delivers if that makes a difference.
func (f *Files) scan(ctx context.Context, c Consumer) {
	problems := f.read()
	files := make([]*file, 0, len(f.files))
	for _, one := range f.files {
		files = append(files, one)
	}
	slices.SortFunc(files, func(a, b *file) int { return strings.Compare(a.path, b.path) })
	chosen, whole := choose(files)
	for _, one := range files {
		problems = append(problems, one.problems...)
		problems = append(problems, one.conflicts...)
	}
	// Until every file could be used once, what is missing is not known: what an
	// earlier run has published must not be taken away by a typing error.
	if gone := f.gone(); !gone && (f.delivered || whole) {
		if !f.delivered || !slices.Equal(chosen, f.last) {
			f.deliver(ctx, c, chosen)
		}
		for i, one := range files {
			if chosen[i] != nil {
				one.good = chosen[i]
			}
		}
		f.last, f.delivered = chosen, true
	}
	f.report(problems)
}

// gone tells whether the directory cannot be seen: that is not the same as empty.
func (f *Files) gone() bool {
	info, err := os.Stat(f.opts.Dir)
	return err != nil || !info.IsDir()
}

// read looks at every file, and parses those whose bytes have changed.
func (f *Files) read() (problems []mesh.Verdict) {
	problem := func(path string, err error) {
		problems = append(problems, mesh.Verdict{Source: path, Class: mesh.Invalid, Message: err.Error()})
	}
	entries, err := os.ReadDir(f.opts.Dir)
	if err != nil {
		problem(f.opts.Dir, fmt.Errorf("cannot be read, the last good state stays: %w", err))
		return problems
	}
	present := map[string]bool{}
	for _, e := range entries {
		if !wantedFile(e.Name()) {
			continue
		}
		path := filepath.Join(f.opts.Dir, e.Name())
		data, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) {
			continue // removed meanwhile, a dangling link, a directory
		}
		present[path] = true
		one := f.files[path]
		if one == nil {
			one = &file{path: path}
			f.files[path] = one
		}
		if err != nil {
			problem(path, err) // what was read before stays
			continue
		}
		sum := sha256.Sum256(data)
		if sum == one.sum {
			continue
		}
		one.sum = sum
		one.latest, one.problems = parseFile(path, data)
		for _, v := range one.problems {
			f.log.Error("file is not used", "err", v)
		}
	}
	for path := range f.files {
		if !present[path] {
			delete(f.files, path)
		}
	}
	return problems
}

var errNotRegular = errors.New("is not a regular file")

// readFile reads a file of bounded size.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path) // before opening: a FIFO would block
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	fd, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	data, err := io.ReadAll(io.LimitReader(fd, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileSize {
		return nil, errTooBig
	}
	return data, nil
}

// deliver hands the chosen versions over.
func (f *Files) deliver(ctx context.Context, c Consumer, chosen []*parsed) {
	ups := updates(chosen)
	err := c.Apply(ctx, ups...)
	if err != nil {
		f.log.Error("resources are not used", "err", err)
	}
	// The directory is all there is: what it does not have does not exist.
	for _, t := range byName {
		have := map[string]bool{}
		for _, u := range ups {
			if u.Type != t {
				continue
			}
			for _, r := range u.Resources {
				have[r.Name] = true
			}
		}
		var absent []string
		for _, name := range c.Wanted(t) {
			if !have[name] {
				absent = append(absent, name)
			}
		}
		if len(absent) > 0 {
			c.Absent(t, absent)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.LastUpdate = time.Now()
	old := map[string]TypeStatus{}
	for _, t := range f.status.Types {
		old[t.Type] = t
	}
	f.status.Types = nil
	for _, u := range ups {
		t := old[short(u.Type)]
		t.Type, t.Resources, t.LastError = short(u.Type), len(u.Resources), ""
		if err != nil {
			t.Rejected++
		} else {
			t.Accepted++
		}
		f.status.Types = append(f.status.Types, t)
	}
	slices.SortFunc(f.status.Types, func(a, b TypeStatus) int { return strings.Compare(a.Type, b.Type) })
}

// report publishes the status.
func (f *Files) report(problems []mesh.Verdict) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Problems = problems
	if ok := len(problems) == 0; ok != f.status.Connected {
		f.status.Connected, f.status.Since = ok, time.Now()
	}
}
