// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"regexp"
	"strings"

	"kmesh/helper/explain"
	"kmesh/helper/mesh"
)

// group is the hosts that lead to one pair of virtual hosts.
type group struct {
	vhs   [2]*mesh.VirtualHost // nil: none
	hosts []value
}

// groups divides all hosts by the virtual hosts that they lead to in each of the
// configurations (nil: there is none).
func groups(hs [2]*mesh.HTTP, limits Limits) (*dimension, []*group, error) {
	d := newDimension(kindHost, "")
	ignorePort := true
	for _, h := range hs {
		if h == nil {
			continue
		}
		ignorePort = ignorePort && h.IgnorePort
		for _, vh := range h.VirtualHosts {
			for _, r := range vh.Routes {
				// The conditions of the routes ask for their patterns again; here
				// it matters only that the classes know them.
				ds := dimensions{host: d, byID: map[string]*dimension{}}
				if _, err := ds.conditions(&r.Match); err != nil {
					return nil, nil, err
				}
			}
		}
	}
	within := legalHost
	if len(d.patterns) > 0 || !ignorePort {
		within += legalPort
	}
	for _, h := range hs {
		if h == nil {
			continue
		}
		for _, vh := range h.VirtualHosts {
			for _, domain := range vh.Domains {
				d.domain(domain, within != legalHost)
			}
		}
	}
	classes, err := classes(within, d.patterns, prefer[kindHost], limits)
	if err != nil {
		return nil, nil, &LimitError{Where: "the domains of all virtual hosts", What: d.String(), Err: err}
	}
	var out []*group
	byPair := map[[2]*mesh.VirtualHost]*group{}
	add := func(v value) {
		var pair [2]*mesh.VirtualHost
		for side, h := range hs {
			if h != nil {
				pair[side] = explain.FindVirtualHost(h, v.text)
			}
		}
		g := byPair[pair]
		if g == nil {
			g = &group{vhs: pair}
			byPair[pair] = g
			out = append(out, g)
		}
		g.hosts = append(g.hosts, v)
	}
	for _, c := range classes {
		add(value{text: c.Witness, holds: c.Holds})
	}
	add(value{absent: true, tags: noHost})
	return d, out, nil
}

// domain adds the patterns by which a host is in a domain, or is only nearly: the
// wildcard stands for at least one byte.
func (d *dimension) domain(domain string, ports bool) {
	m := mesh.StringMatch{Value: domain, IgnoreCase: true}
	expr := regexp.QuoteMeta(domain)
	tail, suffix := strings.CutPrefix(domain, "*")
	start, prefix := strings.CutSuffix(domain, "*")
	switch {
	case domain == "*":
		return
	case suffix:
		m.Kind, m.Value = mesh.StringSuffix, tail
		expr = ".*" + regexp.QuoteMeta(tail)
	case prefix:
		m.Kind, m.Value = mesh.StringPrefix, start
		expr = ""
	}
	d.pattern(m)
	if suffix || prefix {
		d.pattern(mesh.StringMatch{Value: m.Value, IgnoreCase: true})
	}
	if ports {
		// With a port that may be left out of account.
		if prefix {
			expr = regexp.QuoteMeta(start)
		} else if suffix {
			d.pattern(mesh.StringMatch{Kind: mesh.StringRegex, Value: "(?i)" + regexp.QuoteMeta(tail) + ":[0-9]+"})
		}
		d.pattern(mesh.StringMatch{Kind: mesh.StringRegex, Value: "(?i)" + expr + ":[0-9]+"})
	}
}
