// SPDX-License-Identifier: Apache-2.0

package live

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"kmesh/helper/explain"
	"kmesh/helper/mesh"
	"kmesh/test/match"
)

// difference is what clients saw and the reference does not allow.
type difference struct {
	w       *world
	history []pair // of the connection; the last one is what it is about
	wrong   string
}

// differences are those that were found; the first ends the run.
type differences struct {
	mu  sync.Mutex
	all []*difference
}

func (d *differences) add(one *difference) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, one)
}

func (d *differences) any() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.all) > 0
}

// shrinking is how long a difference is made smaller.
const shrinking = 20 * time.Second

// report says what differs, and a smaller case if there is one.
func (d *difference) report(l *lab) {
	l.t.Helper()
	if d.w == nil {
		l.t.Error(d.wrong)
		return
	}
	text := fmt.Sprintf("%s=%d %s=%d: request %d of a connection: %s\n", seedEnv, d.w.seed, pairsEnv, perWorld, len(d.history), d.wrong)
	small := d.shrink(l)
	if small == nil {
		for _, p := range d.history[:len(d.history)-1] {
			text += fmt.Sprintf("before it %s\n", d.sent(p))
		}
		l.t.Errorf("%sit does not happen again alone; sent %s\n%s", text, d.sent(d.history[len(d.history)-1]), d.w.format(d.history[len(d.history)-1].request))
		return
	}
	for _, p := range small.history[:len(small.history)-1] {
		text += fmt.Sprintf("before it %s\n", small.sent(p))
	}
	last := small.history[len(small.history)-1]
	l.t.Errorf("%sshrunk: %s\nsent %s\n%s", text, small.wrong, small.sent(last), small.w.format(last.request))
}

func (d *difference) sent(p pair) string {
	s := scriptOf(p)
	return fmt.Sprintf("%.1500q, cut at %v", s.bytes, s.cuts)
}

// isLikely: the routes that no request takes are not shown; in shrinking they go like the others.
func isLikely(route *mesh.Route) bool { return strings.HasPrefix(route.Name, "likely") }

// format shows a world and a request.
func (w *world) format(request []byte) string {
	shown := *w.service.HTTP
	shown.VirtualHosts = nil
	for _, vh := range w.service.HTTP.VirtualHosts {
		v := *vh
		v.Routes = slices.DeleteFunc(slices.Clone(vh.Routes), isLikely)
		shown.VirtualHosts = append(shown.VirtualHosts, &v)
	}
	text := match.Format(&shown, request)
	for _, vh := range w.service.HTTP.VirtualHosts {
		for _, route := range vh.Routes {
			if !isLikely(route) {
				text += fmt.Sprintf("%s/%s: clusters %v redirect %+v direct %v abort %+v unsupported %v\n", vh.Name, route.Name, route.Clusters, route.Redirect, route.Direct != nil, route.Abort, route.Unsupported)
			}
		}
	}
	return text + fmt.Sprintf("servers %v; what is not HTTP: %v\n", w.answers, w.service.Clusters)
}

// again publishes a world like d's, with this routing, and sends the pairs on one connection: what differs about the
// last one, if anything does.
func (d *difference) again(l *lab, cfg *mesh.HTTP, history []pair) *difference {
	w := *d.w
	svc := *d.w.service
	svc.HTTP = cfg
	w.service = &svc
	if err := l.publish([]*world{&w}, nil); err != nil {
		return nil
	}
	defer func() {
		w.taken = nil
		if err := l.publish(nil, []*world{&w}); err != nil {
			l.t.Error(err)
		}
	}()
	for _, p := range l.clients {
		c, err := l.dial(&w, p)
		if err != nil {
			return &difference{&w, history, err.Error()}
		}
		m := new(explain.Matcher)
		for i, p := range history {
			e, _, wrong, err := c.say(&w, m, p, scriptOf(p))
			if err != nil || wrong == "" && i < len(history)-1 && (e.ending != goesOn || e.cutShort()) {
				break
			}
			if wrong != "" {
				c.Close()
				if i < len(history)-1 {
					return nil
				}
				return &difference{&w, history, wrong}
			}
		}
		c.Close()
	}
	return nil
}

// shrink looks for the shortest history that shows the difference, then for a smaller configuration and request; nil
// if it does not happen again.
func (d *difference) shrink(l *lab) *difference {
	if err := l.publish(nil, slices.Collect(func(yield func(*world) bool) {
		for w := range l.worlds {
			if w.seed != d.w.seed && !yield(w) {
				return
			}
		}
	})); err != nil {
		l.t.Error(errors.Join(errors.New("before shrinking"), err))
		return nil
	}
	if l.worlds[d.w] {
		taken := d.w.taken // still in use
		d.w.taken = nil
		if err := l.publish(nil, []*world{d.w}); err != nil {
			l.t.Error(err)
			return nil
		}
		d.w.taken = taken
	}
	until := time.Now().Add(shrinking)
	var small *difference
	for n := 1; n <= len(d.history) && small == nil && time.Now().Before(until); n++ {
		small = d.again(l, d.w.service.HTTP, d.history[len(d.history)-n:])
	}
	if small == nil {
		return nil
	}
	before, last := small.history[:len(small.history)-1], small.history[len(small.history)-1]
	match.Shrink(small.w.service.HTTP, last.request, func(cfg *mesh.HTTP, b []byte) bool {
		if time.Now().After(until) {
			return false
		}
		smaller := d.again(l, cfg, append(slices.Clone(before), pair{b, last.draws}))
		if smaller != nil {
			small = smaller
		}
		return smaller != nil
	})
	return small
}
