// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"kmesh/helper/mesh"
)

// Report is what differs between two lists of services.
type Report struct {
	// Added and Removed are the names that only the new or the old list has.
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
	// Services that are in either list and about which there is something to say, by name.
	Services []Service `json:"services"`
}

// Service is what is to be said about a service.
type Service struct {
	Name string `json:"name"`
	// What clients connect to, whether requests are routed, and what becomes of
	// connections whose requests are not; nil: no change, or the service is in one
	// list only.
	Frontends   *Turn `json:"frontends,omitempty"`
	Requests    *Turn `json:"requests,omitempty"`
	Connections *Turn `json:"connections,omitempty"`
	Result
}

// Turn is something that was one way and is another.
type Turn struct {
	Old string `json:"old"`
	New string `json:"new"`
}

// Different tells whether anything is decided otherwise. Routes that are never reached
// are no difference.
func (r *Report) Different() bool {
	return len(r.Added) > 0 || len(r.Removed) > 0 || slices.ContainsFunc(r.Services, func(s Service) bool { return s.different() })
}

func (s *Service) different() bool {
	return s.Frontends != nil || s.Requests != nil || s.Connections != nil || len(s.Changes) > 0
}

// Services compares services of the same name.
func Services(before, after []*mesh.Service, limits Limits) (*Report, error) {
	report := &Report{Added: []string{}, Removed: []string{}, Services: []Service{}}
	type pair struct{ before, after *mesh.Service }
	pairs := map[string]*pair{}
	var names []string
	get := func(name string) *pair {
		p := pairs[name]
		if p == nil {
			p = new(pair)
			pairs[name] = p
			names = append(names, name)
		}
		return p
	}
	for _, s := range before {
		get(s.Name).before = s
	}
	for _, s := range after {
		get(s.Name).after = s
	}
	slices.Sort(names)
	for _, name := range names {
		p := pairs[name]
		switch {
		case p.before == nil:
			report.Added = append(report.Added, name)
		case p.after == nil:
			report.Removed = append(report.Removed, name)
		}
		s, err := service(p.before, p.after, limits)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", name, err)
		}
		if s.Name = name; s.different() || len(s.NeverOld)+len(s.NeverNew) > 0 {
			report.Services = append(report.Services, s)
		}
	}
	return report, nil
}

// service compares one service; nil: it is not there.
func service(before, after *mesh.Service, limits Limits) (Service, error) {
	var s Service
	var https [2]*mesh.HTTP
	for side, svc := range []*mesh.Service{before, after} {
		if svc != nil {
			https[side] = svc.HTTP
		}
	}
	if before != nil && after != nil {
		s.Frontends = turn(frontends(before), frontends(after))
		s.Connections = turn(connections(before), connections(after))
		if turned := (before.HTTP != nil) != (after.HTTP != nil); turned {
			s.Requests = turn(requests(before), requests(after))
		}
	}
	result, err := Compare(https[0], https[1], limits)
	if err != nil {
		return s, err
	}
	s.Result = *result
	for i := range s.Changes {
		s.Changes[i].Witness.Connect = connect(after)
	}
	return s, nil
}

// connect is where a client connects to for a service, as curl's --connect-to has it.
func connect(s *mesh.Service) string {
	if len(s.Frontends) != 1 || s.Frontends[0].Port == 0 {
		return ""
	}
	f, address := s.Frontends[0], ""
	if f.Prefix.IsSingleIP() {
		address = f.Prefix.Addr().String()
		if f.Prefix.Addr().Is6() {
			address = "[" + address + "]"
		}
	}
	return fmt.Sprintf("%s:%d", address, f.Port)
}

func turn(before, after string) *Turn {
	if before == after {
		return nil
	}
	return &Turn{before, after}
}

func frontends(s *mesh.Service) string {
	var out []string
	for _, f := range s.Frontends {
		port := "*"
		if f.Port != 0 {
			port = strconv.Itoa(int(f.Port))
		}
		out = append(out, fmt.Sprintf("%s port %s %s", f.Prefix, port, f.Protocol))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// connections says what becomes of what is not routed by request.
func connections(s *mesh.Service) string {
	collected := newShares()
	text := "refused"
	if len(s.Clusters) > 0 {
		collected.clusters(s.Clusters, "", fraction(nil))
		d := Decision{Outcomes: collected.outcomes()}
		text = d.String()
	}
	if s.HashSource {
		text += ", by the client's address"
	}
	return text
}

func requests(s *mesh.Service) string {
	if s.HTTP == nil {
		return "not routed"
	}
	return "routed"
}
