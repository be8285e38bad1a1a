// SPDX-License-Identifier: Apache-2.0

package lastgood

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	// share is how small a part of the time writing may take: one of so many.
	share = 20
	// rest is how small a part it takes as long as that makes no write later than
	// restMost: all is written for the one that changed.
	rest     = 100
	restMost = 10 * time.Second
	// retryMax bounds the wait after a write that failed.
	retryMax = time.Minute
)

// Status is how it is, for people.
type Status struct {
	Path string
	// Loaded is the time of the last update that the file at start had; zero if it was not
	// used. Problem says why, or what of it was not.
	Loaded  time.Time
	Problem string
	// FromDisk are the types of which everything that is served is from disk: nothing has
	// been heard of them in this run. Age is how long ago the last update was, then.
	FromDisk []string
	Age      time.Duration
	// Unconfirmed counts resources that are from disk, of types that have been heard of.
	Unconfirmed int
	// Resources are held; Updated is when anything was last heard of them.
	Resources int
	Updated   time.Time
	// Written is when the file was last written, of this many bytes; zero if it was not.
	// WriteError says why what has changed since could not be.
	Written    time.Time
	Bytes      int64
	WriteError string
}

// Stale tells whether something is served that only the disk says.
func (s Status) Stale() bool { return len(s.FromDisk) > 0 }

// Status returns the state of now.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	st := k.status
	for _, url := range slices.Sorted(maps.Keys(k.types)) {
		rec := k.types[url]
		st.Resources += len(rec.items)
		switch {
		case !rec.fromDisk:
			st.Unconfirmed += len(rec.unconfirmed)
		case len(rec.items) > 0:
			st.FromDisk = append(st.FromDisk, url)
		}
	}
	if st.Stale() {
		st.Age = max(time.Since(st.Loaded), 0)
	}
	return st
}

// changed has the file written; mu is held.
func (k *Keeper) changed() {
	k.dirty = true
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// keep writes the file whenever something has changed, until Close.
func (k *Keeper) keep() {
	defer close(k.ended)
	failed := k.opts.Every
	for {
		select {
		case <-k.wake:
		case <-k.stop:
			k.save()
			return
		}
		began := time.Now()
		wait := k.opts.Every
		if k.save() {
			wait, failed = max(wait, pause(time.Since(began))), k.opts.Every
		} else {
			wait, failed = failed, min(2*failed, retryMax)
		}
		next := time.NewTimer(wait)
		select {
		case <-next.C:
		case <-k.stop:
			next.Stop()
		}
	}
}

// pause is the least time until the next write, after one that took so long.
func pause(took time.Duration) time.Duration {
	return max(share*took, min(rest*took, restMost))
}

// save writes the file if something has changed; false: it could not.
func (k *Keeper) save() bool {
	c, dirty := k.collect()
	if !dirty {
		return true
	}
	size, err := write(k.path, c, k.rename)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.status.WriteError = fmt.Sprintf("%s is not written, after a restart of the node an older configuration would serve: %v: make room, or let the helper write there", k.path, err)
		k.log.Error("the last good configuration is not written", "err", err)
		k.changed()
		return false
	}
	k.status.Written, k.status.Bytes, k.status.WriteError = time.Now(), size, ""
	return true
}

// collect returns what is to be written, and whether it is to be.
func (k *Keeper) collect() (content, bool) {
	k.mu.Lock()
	if !k.dirty {
		k.mu.Unlock()
		return content{}, false
	}
	k.dirty = false
	c := content{updated: k.status.Updated}
	for _, t := range k.opts.Types {
		rec := k.types[t.URL]
		if !rec.heard {
			continue
		}
		c.types = append(c.types, held{t.URL, slices.AppendSeq(make([]item, 0, len(rec.items)), maps.Values(rec.items))})
	}
	k.mu.Unlock()
	for _, t := range c.types {
		slices.SortFunc(t.items, func(a, b item) int { return cmp.Compare(a.name, b.name) })
	}
	return c, true
}

// Close writes what has not been written, and ends. The consumer keeps what it has.
func (k *Keeper) Close() {
	k.closing.Do(func() {
		k.mu.Lock()
		k.closed = true
		for _, rec := range k.types {
			if rec.sweep != nil {
				rec.sweep.Stop()
			}
		}
		k.mu.Unlock()
		close(k.stop)
	})
	<-k.ended
}
