// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kmesh/bpf"
	"kmesh/helper/automaton"
	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
	"kmesh/test/match"
)

// actions gives the routes of a routing something to do.
func actions(rng *rand.Rand, h *mesh.HTTP) {
	word := func(of ...string) string { return of[rng.IntN(len(of))] }
	for _, vh := range h.VirtualHosts {
		for _, r := range vh.Routes {
			r.Clusters = nil
			switch rng.IntN(6) {
			case 0:
				r.Redirect = &mesh.Redirect{
					Status: []uint16{301, 302, 303, 307, 308}[rng.IntN(5)], Scheme: word("", "", "https", "http"),
					Host: word("", "", "r.x", "r.x:9"), Port: []uint16{0, 0, 80, 443, 8443}[rng.IntN(5)], StripQuery: rng.IntN(3) == 0,
				}
				if rng.IntN(2) == 0 {
					r.Redirect.Path = word("/p", "/p?q=1", "p", "/")
				} else {
					r.Redirect.Prefix = word("", "/", "/n", "n", "/n/")
				}
			case 1:
				r.Direct = &mesh.DirectResponse{Status: []uint16{200, 204, 304, 403, 503, 599}[rng.IntN(6)], Body: []byte(word("", "x", "a\r\n\r\nb", strings.Repeat("y", 4096)))}
			case 2:
				r.Unsupported = true
				continue
			default:
				for i := range 1 + rng.IntN(3) {
					r.Clusters = append(r.Clusters, mesh.WeightedCluster{Cluster: "c" + strconv.Itoa(rng.IntN(5)), Weight: rng.Uint32N(3) + uint32(1-min(i, 1))})
				}
				r.Hash = []mesh.Hash{{}, {}, {Kind: mesh.HashSource}, {Kind: mesh.HashHeader, Header: "x-user"}}[rng.IntN(4)]
			}
			if rng.IntN(4) == 0 {
				r.Abort = &mesh.Abort{Fraction: mesh.Fraction{Numerator: rng.Uint32N(101), Denominator: 100}, Status: []uint16{400, 404, 418, 503, 555}[rng.IntN(5)]}
			}
		}
	}
}

// expected is what the reference says about a request, in the reader's words.
func expected(m *explain.Matcher, svc *mesh.Service, r *head.Request, draw uint32) string {
	vh := explain.FindVirtualHost(svc.HTTP, r.Authority)
	if vh == nil {
		return "404"
	}
	in := func(f mesh.Fraction) bool {
		return uint64(draw)*uint64(f.Denominator) < uint64(f.Numerator)<<32
	}
	i, _ := m.Match(vh, r, in)
	if i < 0 {
		return "404"
	}
	route := vh.Routes[i]
	switch {
	case route.Abort != nil && in(route.Abort.Fraction):
		return fmt.Sprintf("aborts %d", route.Abort.Status)
	case route.Unsupported:
		return "503"
	case route.Redirect != nil:
		return fmt.Sprintf("answers %d location: %s", route.Redirect.Status, explain.Location(route.Redirect, &route.Match.Path, r))
	case route.Direct != nil:
		body := string(route.Direct.Body)
		if s := route.Direct.Status; s == 204 || s == 304 || r.Method == "HEAD" {
			body = ""
		}
		return fmt.Sprintf("answers %d body %q", route.Direct.Status, body)
	}
	text := "forwards"
	for _, w := range route.Clusters {
		text += fmt.Sprintf(" %s=%d", w.Cluster, w.Weight)
	}
	return text + fmt.Sprintf(" hash %d %q", route.Hash.Kind, route.Hash.Header)
}

// short brings what the reader says into the words of expected; problem says what is
// wrong with an answer.
func short(got string) (text, problem string) {
	first, answer, _ := strings.Cut(got, "\n")
	words := strings.SplitN(first, " ", 2)
	if len(words) == 2 {
		first = words[1]
	}
	if first != "answers" && first != "aborts" {
		return first, ""
	}
	header, body, ok := strings.Cut(answer, "\r\n\r\n")
	lines := strings.Split(header, "\r\n")
	status := strings.SplitN(lines[0], " ", 3)
	if !ok || len(status) != 3 || status[0] != "HTTP/1.1" {
		return first, "no head"
	}
	length := -1
	for _, line := range lines[1:] {
		if v, ok := strings.CutPrefix(line, "content-length: "); ok {
			length, _ = strconv.Atoi(v)
		}
		if v, ok := strings.CutPrefix(line, "location: "); ok {
			return "answers " + status[1] + " location: " + v, ""
		}
	}
	if body != "" && length != len(body) {
		problem = fmt.Sprintf("body of %d bytes, said to have %d", len(body), length)
	}
	if none := status[1] == "204" || status[1] == "304"; none != (length < 0) {
		problem = fmt.Sprintf("status %s with length %d", status[1], length)
	}
	if first == "aborts" {
		return "aborts " + status[1], problem
	}
	return "answers " + status[1] + fmt.Sprintf(" body %q", body), problem
}

// compiles tells whether all virtual hosts of a routing have programs.
func compiles(h *mesh.HTTP) bool {
	return !slices.ContainsFunc(h.VirtualHosts, func(vh *mesh.VirtualHost) bool {
		_, err := automaton.Compile(vh, automaton.Budget{})
		return err != nil
	})
}

// TestHTTPHistory publishes random routings, one after another, with restarts. After
// each step every request finds in the maps what the reference says, and the maps say
// what they would if this snapshot were the first one; nothing of the old ones stays.
func TestHTTPHistory(t *testing.T) {
	for _, scopes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d scopes", scopes), func(t *testing.T) { httpHistory(t, scopes) })
	}
}

func httpHistory(t *testing.T, scopes int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rt, fresh := load(t, nil), load(t, nil)
	p := publisher(t, rt)
	services := map[string]*mesh.Service{}
	short := 0 // steps of which only the changes were compiled
	for step := range 40 {
		name := "s" + strconv.Itoa(rng.IntN(4))
		g := match.NewGenerator(rng.Uint64())
		switch h := g.Config(); {
		case rng.IntN(6) == 0:
			delete(services, name)
		case compiles(h):
			actions(rng, h)
			if old := services[name]; old != nil && rng.IntN(4) > 0 {
				services[name] = otherRoutes(rng, old, h.VirtualHosts[0].Routes)
				break
			}
			svc := &mesh.Service{Name: name, HTTP: h, Frontends: []mesh.Frontend{frontend("10.96.1."+name[1:]+"/32", 80)}}
			if rng.IntN(2) == 0 {
				svc.Frontends = append(svc.Frontends, frontend("10.97."+name[1:]+".0/24", 80))
			}
			if rng.IntN(2) == 0 {
				svc.Clusters = []mesh.WeightedCluster{{Cluster: "c0", Weight: 1}}
			}
			services[name] = svc
		}
		snap := httpStep(rng, services, scopes)
		if _, ok := p.changes(snap); ok {
			short++
		}
		publish(t, p, snap)
		same(t, fmt.Sprintf("step %d: read back", step), p, publisher(t, rt))
		checkRequests(t, reader{rt}, p, services, rng)
		first := publisher(t, fresh)
		publish(t, first, &mesh.Snapshot{})
		publish(t, first, snap)
		if diff := cmp.Diff(strings.Split(reader{fresh}.dump(), "\n"), strings.Split(reader{rt}.dump(), "\n")); diff != "" {
			t.Fatalf("step %d: the maps after this history differ from a first publication: %s", step, diff)
		}
		if rng.IntN(4) == 0 {
			p = publisher(t, rt)
		}
	}
	if short == 0 {
		t.Error("no step went the short way")
	}
	publish(t, p, &mesh.Snapshot{})
	used := 0
	for _, x := range p.programs.at {
		used += x.size
	}
	if len(p.programs.at) != 1 || len(p.now.vhosts) != 1 {
		t.Errorf("%d programs and %d virtual hosts are left, want those of responses", len(p.programs.at), len(p.now.vhosts))
	}
	ignore := cmpopts.IgnoreTypes(struct{}{})
	if diff := cmp.Diff(allFree(rt.Map("km_routes").MaxEntries()), p.freeRoutes, ignore); diff != "" {
		t.Errorf("routes leaked: %s", diff)
	}
	if diff := cmp.Diff(allFree(rt.Map("km_shares").MaxEntries()), p.freeShares, ignore); diff != "" {
		t.Errorf("shares leaked: %s", diff)
	}
	free := 0
	for _, slab := range p.programs.free {
		for _, x := range slab {
			free += int(x.N) * automaton.Align
		}
	}
	if free+used != len(rt.SlabMemory()) {
		t.Errorf("%d bytes of slabs leaked", len(rt.SlabMemory())-free-used)
	}
}

// otherRoutes is a service of which one virtual host, or one of its routes, is another.
func otherRoutes(rng *rand.Rand, old *mesh.Service, routes []*mesh.Route) *mesh.Service {
	svc, h := *old, *old.HTTP
	h.VirtualHosts = slices.Clone(h.VirtualHosts)
	i := rng.IntN(len(h.VirtualHosts))
	vh := *h.VirtualHosts[i]
	if rng.IntN(2) == 0 {
		k := rng.IntN(len(vh.Routes))
		vh.Routes = slices.Clone(vh.Routes)
		one := *routes[0]
		one.Match = vh.Routes[k].Match
		vh.Routes[k] = &one
	} else {
		vh.Routes = routes
	}
	h.VirtualHosts[i], svc.HTTP = &vh, &h
	return &svc
}

// httpStep shares the services out over scopes, which have the same clusters; the first
// scope is the default one.
func httpStep(rng *rand.Rand, services map[string]*mesh.Service, scopes int) *mesh.Snapshot {
	clusters := map[string]*mesh.Cluster{}
	for i := range 5 {
		name := "c" + strconv.Itoa(i)
		clusters[name] = &mesh.Cluster{Name: name, MaxRequests: uint16(rng.IntN(2)), Localities: []mesh.Locality{{Endpoints: endpoints(rng.IntN(4), i)}}}
		if limit := rng.Uint32N(3); limit > 0 {
			clusters[name].MaxConnections = &limit
		}
	}
	snap := &mesh.Snapshot{}
	for scope := range scopes {
		sc := mesh.Scope{Clusters: clusters}
		if scope > 0 {
			sc.Key = mesh.ScopeKey{Namespace: "n" + strconv.Itoa(scope)}
		}
		for i := range 4 {
			if svc := services["s"+strconv.Itoa(i)]; svc != nil && i%scopes == scope {
				sc.HTTP = append(sc.HTTP, svc)
			}
		}
		snap.Scopes = append(snap.Scopes, sc)
	}
	return snap
}

// checkRequests holds what the maps say about requests against the reference.
func checkRequests(t *testing.T, r reader, p *Publisher, services map[string]*mesh.Service, rng *rand.Rand) {
	t.Helper()
	ids := map[string]uint32{}
	for id, n := range p.now.names {
		if n.kind == bpf.NameService {
			ids[n.name] = id
		}
	}
	var m explain.Matcher
	for name, svc := range services {
		g := match.NewGenerator(rng.Uint64())
		for range 60 {
			b := g.Request(svc.HTTP)
			req, out := head.ParseRequest(b)
			if out.Kind != head.Route {
				continue
			}
			draw := rng.Uint32()
			got, problem := short(r.decide(ids[name], b, draw))
			if want := expected(&m, svc, &req, draw); got != want || problem != "" {
				t.Fatalf("%s: %q\n got  %s (%s)\n want %s", name, b, got, problem, want)
			}
		}
	}
}

// TestHTTPStopped: a publication that is stopped on its way leaves what the next one
// can go on from.
func TestHTTPStopped(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 0))
	rt := load(t, nil)
	p := publisher(t, rt)
	services := map[string]*mesh.Service{}
	for step := range 6 {
		h := match.NewGenerator(uint64(step)).Config()
		if !compiles(h) {
			continue
		}
		actions(rng, h)
		services["s0"] = &mesh.Service{Name: "s0", HTTP: h, Frontends: []mesh.Frontend{frontend("10.96.1.0/32", 80)}}
		snap := httpStep(rng, services, 1)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := p.Publish(ctx, snap); err == nil {
			t.Fatal("a stopped publication has no error")
		}
		publish(t, p, snap)
		checkRequests(t, reader{rt}, p, services, rng)
		same(t, "after a stop, read back", p, publisher(t, rt))
	}
}
