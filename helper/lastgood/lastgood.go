// SPDX-License-Identifier: Apache-2.0

// Package lastgood keeps on disk what a consumer has accepted of a source, so that a node
// that starts without its control plane serves what it served before.
//
// The invariant: what is on disk is what the consumer serves, at most a moment ago, whole or
// as it was before; and what came from disk ends only by the source's own word: by another
// version, by a removal, or by a whole answer that does not have it.
package lastgood

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/xds"
)

// Options configure what is kept of one source.
type Options struct {
	// Dir is the state directory.
	Dir string
	// Name is the source's, in the file's name: letters, digits, dots, dashes.
	Name string
	// Types are those that the source is asked for, in the order in which they depend on
	// each other; xds.EnvoyTypes if empty.
	Types []xds.Type
	// Every is the least time between two writes; 1 s if zero. A large file is written less
	// often.
	Every time.Duration
	// SweepAfter is how long, after a source has answered for the first time, what it has
	// not mentioned and what is from disk stays; 15 s if zero. Only where an answer does
	// not say that it is complete.
	SweepAfter time.Duration
	// Shared: what is kept of other sources is mostly the same, and is to be held once.
	Shared bool
	Log    *slog.Logger
}

// Keeper stands between a source and a consumer. It is an xds.Consumer.
type Keeper struct {
	opts   Options
	log    *slog.Logger
	path   string
	most   int64
	rename func(from, to string) error

	// wake has room for one: something has to be written. stop is closed by Close.
	wake, stop chan struct{}
	ended      chan struct{}
	closing    sync.Once

	mu     sync.Mutex // also keeps calls of the consumer apart
	inner  xds.Consumer
	types  map[string]*record
	dirty  bool
	closed bool
	status Status
}

var _ xds.Consumer = (*Keeper)(nil)

// record is what the consumer holds of one type.
type record struct {
	typ   xds.Type
	heard bool // there has been a word of it, now or before
	items map[string]item
	// fromDisk: there has been none since it was loaded. unconfirmed are the names that are
	// from disk and that the source has not mentioned since.
	fromDisk    bool
	unconfirmed map[string]bool
	// blind: an answer had something whose name could not be read, so nobody knows what it
	// did not have.
	blind bool
	// sweep is when those that are left are taken away; armed counts how often it was set.
	sweep *time.Timer
	armed int
}

// New puts a keeper before a consumer, and reads nothing yet. Close ends it.
func New(inner xds.Consumer, opts Options) (*Keeper, error) {
	if !names.MatchString(opts.Name) {
		return nil, fmt.Errorf("last good configuration: Name: %q: give letters, digits, dots and dashes, at most 128, a letter or digit first", opts.Name)
	}
	if opts.Dir == "" {
		return nil, errors.New("last good configuration: Dir: there is none: give the state directory")
	}
	if len(opts.Types) == 0 {
		opts.Types = xds.EnvoyTypes()
	}
	if opts.Every <= 0 {
		opts.Every = time.Second
	}
	if opts.SweepAfter <= 0 {
		opts.SweepAfter = 15 * time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	k := &Keeper{
		opts: opts, path: filepath.Join(opts.Dir, folder, opts.Name+suffix), most: maxFile, rename: os.Rename,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
		inner: inner, types: map[string]*record{},
	}
	k.log, k.status.Path = opts.Log.With("file", k.path), k.path
	for _, t := range opts.Types {
		k.types[t.URL] = &record{typ: t, items: map[string]item{}, unconfirmed: map[string]bool{}}
	}
	go k.keep()
	return k, nil
}

// Load gives the consumer what is on disk; it tells whether there was anything. Call it
// before the source runs, once. A file that cannot be used is left alone, and Status and
// the log say why; everything is then as if there was none.
func (k *Keeper) Load(ctx context.Context) bool {
	c, size, err := k.fromDisk()
	k.mu.Lock()
	defer k.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		k.status.Problem = fmt.Sprintf("%s is not used: %v: it is replaced when the source answers; remove it if it cannot be", k.path, err)
		k.log.Error("the last good configuration is not used, it is replaced when the source answers", "err", err)
		return false
	}
	k.status.Loaded, k.status.Updated, k.status.Bytes = c.updated, c.updated, size
	var updates []xds.Update
	var skipped []error
	byURL := map[string]held{}
	for _, t := range c.types {
		byURL[t.url] = t
	}
	for _, t := range k.opts.Types {
		on, ok := byURL[t.URL]
		if !ok {
			continue
		}
		u := xds.Update{Type: t.URL}
		for _, it := range on.items {
			source := "last good of " + c.updated.Format(time.RFC3339) + " (" + it.source + ")"
			r, err := t.Unpack(it.name, it.version, source, &anypb.Any{TypeUrl: t.URL, Value: it.raw.bytes})
			if err != nil {
				skipped = append(skipped, fmt.Errorf("%q: %w", it.name, err))
				continue
			}
			u.Resources = append(u.Resources, r)
		}
		updates = append(updates, u)
	}
	err = k.inner.Apply(ctx, updates...)
	if err != nil {
		skipped = append(skipped, err)
	}
	if len(skipped) > 0 {
		k.status.Problem = fmt.Sprintf("not all of %s is used: %v: it is replaced when the source answers", k.path, errors.Join(skipped...))
		k.log.Error("not all of the last good configuration is used", "err", errors.Join(skipped...))
	}
	rejected, whole := refused(err)
	for _, u := range updates {
		rec := k.types[u.Type]
		rec.heard, rec.fromDisk = true, true
		if whole {
			continue
		}
		on, wanted := map[string]item{}, k.wants(rec)
		for _, it := range byURL[u.Type].items {
			on[it.name] = it
		}
		for _, r := range u.Resources {
			if !rejected[r.Name] && wanted(r.Name) {
				held, err := k.itemOf(r)
				if err != nil {
					continue // not reached: it has just been decoded
				}
				held.source = on[r.Name].source
				rec.items[r.Name] = held
				if !rec.typ.ByName {
					rec.unconfirmed[r.Name] = true
				}
			}
		}
	}
	k.log.Info("serving the last good configuration until the source answers", "of", c.updated)
	return true
}

// fromDisk reads the file.
func (k *Keeper) fromDisk() (content, int64, error) {
	data, err := read(k.path, k.most)
	if err != nil {
		return content{}, 0, err
	}
	c, err := decode(data)
	return c, int64(len(data)), err
}

// refused are the names that a consumer has not accepted; whole: it has accepted nothing.
func refused(err error) (rejected map[string]bool, whole bool) {
	var list xds.Rejected
	if err != nil && !errors.As(err, &list) {
		return nil, true
	}
	rejected = map[string]bool{}
	for _, v := range list {
		rejected[v.Resource] = true
	}
	return rejected, false
}

// Apply implements xds.Consumer.
func (k *Keeper) Apply(ctx context.Context, updates ...xds.Update) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.inner.Apply(ctx, updates...)
	rejected, whole := refused(err)
	others := false
	for _, u := range updates {
		if rec := k.types[u.Type]; rec != nil && !whole {
			k.take(rec, u, rejected)
			others = others || !rec.typ.ByName
		}
	}
	if others { // what is asked for by name may be something else now
		for _, rec := range k.types {
			k.prune(rec)
		}
	}
	return err
}

// wants returns whether the consumer wants what was sent of a name. What is held of those
// that are asked for by name is wanted: see prune. It holds until the next change.
func (k *Keeper) wants(rec *record) func(name string) bool {
	if !rec.typ.ByName {
		return func(string) bool { return true }
	}
	list := sync.OnceValue(func() []string { return k.inner.Wanted(rec.typ.URL) })
	return func(name string) bool {
		if _, had := rec.items[name]; had {
			return true
		}
		_, wanted := slices.BinarySearch(list(), name)
		return wanted
	}
}

// prune forgets what is asked for by name and nobody wants any more; mu is held.
func (k *Keeper) prune(rec *record) {
	if !rec.typ.ByName || len(rec.items) == 0 {
		return
	}
	wanted := k.inner.Wanted(rec.typ.URL)
	before := len(rec.items)
	maps.DeleteFunc(rec.items, func(name string, _ item) bool {
		_, still := slices.BinarySearch(wanted, name)
		return !still
	})
	if len(rec.items) != before {
		k.changed()
	}
}

// take records what was accepted of an update.
func (k *Keeper) take(rec *record, u xds.Update, rejected map[string]bool) {
	changed := !rec.heard || rec.fromDisk // the file gets a new time
	unconfirmed := len(rec.unconfirmed)
	rec.heard, rec.fromDisk = true, false
	k.status.Updated = time.Now()
	present, wanted := map[string]bool{}, k.wants(rec)
	for _, r := range u.Resources {
		present[r.Name] = true
		delete(rec.unconfirmed, r.Name)
		if rejected[r.Name] || len(r.Invalid) > 0 || !wanted(r.Name) {
			continue // its last good version stays
		}
		it, err := k.itemOf(r)
		if err != nil {
			k.log.Error("a resource is not kept on disk", "name", r.Name, "err", err)
			continue
		}
		if was, had := rec.items[r.Name]; !had || !was.same(it) {
			rec.items[r.Name], changed = it, true
		}
	}
	for _, name := range u.Kept {
		delete(rec.unconfirmed, name)
		rec.blind = rec.blind || name == ""
	}
	// What is asked for by name lives as long as something wants it: see prune.
	if !rec.typ.ByName {
		for _, name := range u.Removed {
			delete(rec.unconfirmed, name)
			changed = rec.drop(name) || changed
		}
		if u.Complete {
			for name := range rec.items {
				changed = !present[name] && rec.drop(name) || changed
			}
			clear(rec.unconfirmed)
		}
	}
	if rec.sweep == nil || len(rec.unconfirmed) < unconfirmed {
		k.armSweep(rec)
	}
	if changed {
		k.changed()
	}
}

// itemOf is what is kept of a resource.
func (k *Keeper) itemOf(r xds.Resource) (item, error) {
	it := item{name: r.Name, version: r.Version, source: r.Source, hosts: r.Hosts}
	if r.Raw != nil && len(r.Hosts) == 0 {
		if it.raw = (&message{r.Raw}); k.opts.Shared {
			it.raw = messages.Put(r.Hash, it.raw)
		}
		return it, nil
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
	it.raw = &message{raw}
	return it, err
}

// drop forgets an item; it tells whether there was one.
func (rec *record) drop(name string) bool {
	_, had := rec.items[name]
	delete(rec.items, name)
	return had
}

// armSweep lets what is from disk, and was not mentioned, go a while after the last answer
// that had some of it: a server may send its first answer in parts.
func (k *Keeper) armSweep(rec *record) {
	if rec.sweep != nil {
		rec.sweep.Stop()
		rec.sweep = nil
	}
	rec.armed++
	if armed := rec.armed; len(rec.unconfirmed) > 0 && !rec.blind && !k.closed {
		rec.sweep = time.AfterFunc(k.opts.SweepAfter, func() { k.sweep(rec, armed) })
	}
}

// sweep takes away what is from disk only.
func (k *Keeper) sweep(rec *record, armed int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || rec.blind || rec.armed != armed || len(rec.unconfirmed) == 0 {
		return
	}
	gone := slices.Sorted(maps.Keys(rec.unconfirmed))
	k.log.Info("the source does not have what was served from disk", "type", rec.typ.URL[strings.LastIndexByte(rec.typ.URL, '.')+1:], "resources", len(gone), "first", gone[0])
	if err := k.inner.Apply(context.Background(), xds.Update{Type: rec.typ.URL, Removed: gone}); err != nil {
		k.log.Error("what the source does not have was not taken away", "err", err)
	}
	for _, name := range gone {
		rec.drop(name)
	}
	clear(rec.unconfirmed)
	k.changed()
}

// Wanted implements xds.Consumer.
func (k *Keeper) Wanted(typeURL string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.inner.Wanted(typeURL)
}

// Absent implements xds.Consumer.
func (k *Keeper) Absent(typeURL string, names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inner.Absent(typeURL, names)
}
