// SPDX-License-Identifier: Apache-2.0

package match

import (
	"encoding/json"
	"fmt"

	"kmesh/helper/mesh"
)

// Shrink makes a pair that fails smaller while it fails, and returns the smallest found.
func Shrink(cfg *mesh.HTTP, req []byte, fails func(*mesh.HTTP, []byte) bool) (*mesh.HTTP, []byte) {
	for progress := true; progress; {
		progress = false
		for _, smaller := range reductions(cfg) {
			if fails(smaller, req) {
				cfg, progress = smaller, true
				break
			}
		}
		if progress {
			continue
		}
		if shorter, ok := shorten(req, func(b []byte) bool { return fails(cfg, b) }); ok {
			req, progress = shorter, true
		}
	}
	return cfg, req
}

// shorten takes out the longest run of bytes without which b still fails.
func shorten(b []byte, fails func([]byte) bool) ([]byte, bool) {
	for size := len(b) / 2; size > 0; size /= 2 {
		for i := 0; i+size <= len(b); i++ {
			shorter := append(b[:i:i], b[i+size:]...)
			if fails(shorter) {
				return shorter, true
			}
		}
	}
	return nil, false
}

// reductions are the configurations that are one step smaller.
func reductions(cfg *mesh.HTTP) []*mesh.HTTP {
	var out []*mesh.HTTP
	// step adds a copy in which change has been made, if it changed anything.
	step := func(change func(*mesh.HTTP) bool) {
		smaller := clone(cfg)
		if change(smaller) {
			out = append(out, smaller)
		}
	}
	for i, vh := range cfg.VirtualHosts {
		step(func(c *mesh.HTTP) bool {
			c.VirtualHosts = append(c.VirtualHosts[:i], c.VirtualHosts[i+1:]...)
			return len(c.VirtualHosts) > 0
		})
		step(func(c *mesh.HTTP) bool { // half of the routes at once
			v := c.VirtualHosts[i]
			n := len(v.Routes)
			v.Routes = v.Routes[n/2:]
			return n > 1
		})
		step(func(c *mesh.HTTP) bool {
			v := c.VirtualHosts[i]
			n := len(v.Routes)
			v.Routes = v.Routes[:n/2]
			return n > 1
		})
		for k := range vh.Domains {
			step(func(c *mesh.HTTP) bool {
				v := c.VirtualHosts[i]
				v.Domains = append(v.Domains[:k], v.Domains[k+1:]...)
				return len(v.Domains) > 0
			})
		}
		for k, route := range vh.Routes {
			step(func(c *mesh.HTTP) bool {
				v := c.VirtualHosts[i]
				v.Routes = append(v.Routes[:k], v.Routes[k+1:]...)
				return true
			})
			reduceRoute(route, func(change func(*mesh.RouteMatch) bool) {
				step(func(c *mesh.HTTP) bool { return change(&c.VirtualHosts[i].Routes[k].Match) })
			})
		}
	}
	return out
}

// reduceRoute steps through what can be left out of a route.
func reduceRoute(route *mesh.Route, step func(func(*mesh.RouteMatch) bool)) {
	step(func(m *mesh.RouteMatch) bool {
		was := m.Path
		m.Path = mesh.PathMatch{}
		return was != m.Path
	})
	step(func(m *mesh.RouteMatch) bool {
		was := m.Fraction
		m.Fraction = nil
		return was != nil
	})
	step(func(m *mesh.RouteMatch) bool {
		plain := m.Path.Kind == mesh.PathRegex || m.Path.Value == ""
		m.Path.Value = m.Path.Value[:max(len(m.Path.Value)-1, 0)]
		return !plain
	})
	for i, h := range route.Match.Headers {
		step(func(m *mesh.RouteMatch) bool {
			m.Headers = append(m.Headers[:i], m.Headers[i+1:]...)
			return true
		})
		step(func(m *mesh.RouteMatch) bool {
			m.Headers[i].Invert = false
			return h.Invert
		})
		step(func(m *mesh.RouteMatch) bool { return reduceString(&m.Headers[i].Match) })
	}
	for i := range route.Match.Query {
		step(func(m *mesh.RouteMatch) bool {
			m.Query = append(m.Query[:i], m.Query[i+1:]...)
			return true
		})
		step(func(m *mesh.RouteMatch) bool { return reduceString(&m.Query[i].Match) })
	}
}

// reduceString shortens a plain string, or folds no more.
func reduceString(s *mesh.StringMatch) bool {
	if s.IgnoreCase {
		s.IgnoreCase = false
		return true
	}
	if s.Kind == mesh.StringRegex || s.Value == "" {
		return false
	}
	s.Value = s.Value[1:]
	return true
}

// clone copies all of cfg.
func clone(cfg *mesh.HTTP) *mesh.HTTP {
	out := &mesh.HTTP{IgnorePort: cfg.IgnorePort}
	for _, vh := range cfg.VirtualHosts {
		v := *vh
		v.Domains = append([]string(nil), vh.Domains...)
		v.Routes = nil
		for _, route := range vh.Routes {
			r := *route
			r.Match.Headers = append([]mesh.HeaderMatch(nil), route.Match.Headers...)
			r.Match.Query = append([]mesh.QueryMatch(nil), route.Match.Query...)
			v.Routes = append(v.Routes, &r)
		}
		out.VirtualHosts = append(out.VirtualHosts, &v)
	}
	return out
}

// Format shows a pair, for a person to read.
func Format(cfg *mesh.HTTP, req []byte) string {
	text := fmt.Sprintf("request %q\nignore port %v\n", req, cfg.IgnorePort)
	for _, vh := range cfg.VirtualHosts {
		text += fmt.Sprintf("virtual host %s %q\n", vh.Name, vh.Domains)
		for i, route := range vh.Routes {
			m, err := json.Marshal(route.Match)
			if err != nil {
				m = []byte(err.Error())
			}
			text += fmt.Sprintf("  %d %s %s\n", i, route.Name, m)
		}
	}
	return text
}
