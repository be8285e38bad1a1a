// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"slices"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/envoy"
)

// claim is what only one listener can have: a destination, or a service name.
type claim struct {
	frontend mesh.Frontend
	service  string
}

// String says it in an error.
func (c claim) String() string {
	if c.service != "" {
		return fmt.Sprintf("has a service of the name %q too", c.service)
	}
	return fmt.Sprintf("governs %s port %d %s too", c.frontend.Prefix, c.frontend.Port, c.frontend.Protocol)
}

// claims calls f for everything that services claim.
func claims(services []*mesh.Service, f func(claim)) {
	for _, svc := range services {
		f(claim{service: svc.Name})
		for _, fr := range svc.Frontends {
			f(claim{frontend: fr})
		}
	}
}

// settle keeps two listeners from governing one destination, or having one
// service name. Who has to step back keeps what the last snapshot has of it, and
// that can be in the way of others, so this goes on until it is quiet: what the
// last snapshot has never was in each other's way, and always wins. It tells
// whether anyone stepped back: that may have made room for another one, so that
// the next build can have a better answer.
func (b *builder) settle(list []*candidate) (again bool) {
	owner := map[claim]string{}
	for listener, services := range b.live {
		claims(services, func(c claim) { owner[c] = listener })
	}
	for _, c := range list {
		c.kept = c.kept || slices.EqualFunc(c.services, b.live[c.name], sameService)
	}
	// stronger tells whether a keeps what both claim.
	stronger := func(a, c *candidate, what claim) bool {
		switch {
		case a.kept != c.kept:
			return a.kept
		case owner[what] == a.name:
			return true
		case owner[what] == c.name:
			return false
		}
		return a.name < c.name
	}
	for {
		holder := map[claim]*candidate{}
		lost := map[*candidate]string{}
		for _, c := range list {
			claims(c.services, func(what claim) {
				o := holder[what]
				switch {
				case o == nil:
					holder[what] = c
				case o == c:
				case stronger(o, c, what):
					lost[c] = fmt.Sprintf("listener %q of %s %s", o.name, o.source, what)
				default:
					holder[what] = c
					lost[o] = fmt.Sprintf("listener %q of %s %s", c.name, c.source, what)
				}
			})
		}
		if len(lost) == 0 {
			return again
		}
		again = true
		for _, c := range list {
			why, stepsBack := lost[c]
			if !stepsBack {
				continue
			}
			c.services, c.kept, c.state = b.live[c.name], true, LastGood
			if len(c.services) == 0 {
				c.state = LeftOut
			}
			b.problems = append(b.problems, mesh.Verdict{
				Source: c.source, Type: envoy.TypeListener, Resource: c.name, Field: "address", Class: mesh.Invalid,
				Message: why + ": give one of them another address or name",
			})
		}
	}
}
