// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/mesh"
	"kmesh/helper/xds"
)

// sentRoutes is a RouteConfiguration as a stream delivers it; apart: in its parts.
func sentRoutes(t *testing.T, text string, apart bool) xds.Resource {
	t.Helper()
	a, err := anypb.New(res(t, &routev3.RouteConfiguration{}, text).Message)
	if err != nil {
		t.Fatal(err)
	}
	r, err := xds.EnvoyTypes()[3].Unpack("", "1", "server", a)
	if err != nil {
		t.Fatal(err)
	}
	if !apart {
		if r.Message, err = r.Whole(); err != nil {
			t.Fatal(err)
		}
		r.Hosts = nil
	}
	return r
}

// TestRandomRoutes delivers random changes of RouteConfigurations to stores: one gets them
// in parts, one whole, one in parts with everything that the first one has already, one in
// parts from scratch at every step. All must say the same of every resource and serve the
// same, and what did not change must be the same object.
func TestRandomRoutes(t *testing.T) {
	pieces := []string{
		"{match: {prefix: /a}, route: {cluster: %s}}", "{match: {prefix: /}, route: {cluster: %s}}",
		"{match: {prefix: /}, route: {cluster: %s, prefix_rewrite: /z}}", "{match: {prefix: /, grpc: {}}, route: {cluster: %s}}",
		"{match: {safe_regex: {regex: '('}}, route: {cluster: %s}}",
	}
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 9))
		refuse := seed%4 == 3
		shared := &Shelf{}
		parts, whole := newBench(t, Options{RefuseActions: refuse, Shelf: shared}), newBench(t, Options{RefuseActions: refuse})
		second := newBench(t, Options{RefuseActions: refuse, Shelf: shared})
		names := []string{"a", "b", "c", "d"}
		pick := func() string { return names[r.IntN(len(names))] }
		hosts := make([]string, 5)
		host := func(i int) {
			var b strings.Builder
			domain := fmt.Sprintf("h%d", i)
			if r.IntN(25) == 0 {
				domain = "h0" // somebody else's
			}
			fmt.Fprintf(&b, "{name: v%d, domains: [%s, '%d.x'], routes: [", i, domain, i)
			for range r.IntN(3) {
				piece := pieces[r.IntN(len(pieces))]
				if strings.Contains(piece, "regex") && r.IntN(4) > 0 {
					piece = pieces[0]
				}
				fmt.Fprintf(&b, piece+", ", pick())
			}
			hosts[i] = b.String() + "]}, "
		}
		for i := range hosts {
			host(i)
		}

		for step := range 60 {
			var u func(apart bool) xds.Update
			switch r.IntN(8) {
			case 0:
				var list []xds.Resource
				for _, n := range names {
					if r.IntN(5) > 0 {
						list = append(list, static(t, n, 1+r.IntN(3)))
					}
				}
				u = func(bool) xds.Update { return clusters(list...) }
			case 1:
				l := listeners(hcm(t, "web", "10.0.0.1", "r"), lis(t, "tcp", "10.0.0.2", pick()))
				u = func(bool) xds.Update { return l }
			default:
				host(r.IntN(len(hosts)))
				text := "{name: r, virtual_hosts: [" + strings.Join(hosts, "") + "]}"
				if r.IntN(6) == 0 {
					text = "{name: r, request_headers_to_remove: [x], max_direct_response_body_size_bytes: 9, virtual_hosts: [" + strings.Join(hosts[r.IntN(len(hosts)):], "") + "]}"
				}
				u = func(apart bool) xds.Update { return routes(sentRoutes(t, text, apart)) }
			}
			before, sound := hostsIn(parts.last), parts.problem() == ""

			var errs []string
			var texts []string
			for _, one := range []struct {
				b     *bench
				apart bool
			}{{parts, true}, {whole, false}, {second, true}} {
				errs = append(errs, fmt.Sprint(one.b.Apply(context.Background(), u(one.apart))))
				settled(one.b)
				one.b.mu.Lock()
				snap := one.b.build.last
				one.b.mu.Unlock()
				one.b.last = snap
				texts = append(texts, deep(snap)+one.b.problem()+fmt.Sprint(states(one.b)))
			}
			if errs[0] != errs[1] || errs[0] != errs[2] || texts[0] != texts[1] || texts[0] != texts[2] {
				t.Fatalf("seed %d step %d: %s\nin parts  %s\nwhole     %s\nalso held %s", seed, step, errs, texts[0], texts[1], texts[2])
			}
			if got, want := parts.Status().Resources, whole.Status().Resources; !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d step %d: the resources\n%+v\nwant\n%+v", seed, step, got, want)
			}
			after, other := hostsIn(parts.last), hostsIn(second.last)
			for text, vh := range after {
				if was := before[text]; was != nil && was != vh && sound && !refuse && parts.problem() == "" {
					t.Fatalf("seed %d step %d: %s is another object", seed, step, text)
				}
				if !refuse && len(other) == len(after) && other[text] == nil {
					t.Fatalf("seed %d step %d: %s is not in the other store", seed, step, text)
				}
			}
		}
	}
}

// hostsIn are the virtual hosts of a snapshot by their content.
func hostsIn(s *mesh.Snapshot) map[string]*mesh.VirtualHost {
	out := map[string]*mesh.VirtualHost{}
	if s == nil {
		return out
	}
	for _, svc := range s.Scopes[0].HTTP {
		for _, vh := range svc.HTTP.VirtualHosts {
			out[deepHost(vh)] = vh
		}
	}
	return out
}

func deepHost(vh *mesh.VirtualHost) string {
	text := fmt.Sprint(vh.Name, vh.Domains)
	for _, r := range vh.Routes {
		text += fmt.Sprintf(" %+v %+v %v %v", r.Match, r.Clusters, r.Unsupported, r.Name)
		if r.Abort != nil {
			text += fmt.Sprint(*r.Abort)
		}
	}
	return text
}

// deep is a snapshot as text, with its routes.
func deep(s *mesh.Snapshot) string {
	out := text(s)
	if s == nil {
		return out
	}
	for _, svc := range s.Scopes[0].HTTP {
		for _, vh := range svc.HTTP.VirtualHosts {
			out += "\n" + deepHost(vh)
		}
	}
	return out + "\n"
}

// TestStoresShare: two stores with one shelf hold what is equal once.
func TestStoresShare(t *testing.T) {
	shared := &Shelf{}
	one, two := newBench(t, Options{Shelf: shared}), newBench(t, Options{Shelf: shared})
	for _, b := range []*bench{one, two} {
		other := "b"
		if b == two {
			other = "a"
		}
		b.apply(clusters(eds(t, "a"), eds(t, "b")), assignments(cla(t, "a", 1, 2), cla(t, "b", 3)), listeners(hcm(t, "web", "10.0.0.1", "r"), lis(t, "l", "10.0.0.2", "a")),
			routes(sentRoutes(t, "{name: r, virtual_hosts: [{name: v, domains: [v], routes: [{match: {prefix: /}, route: {cluster: a}}]}, {name: w, domains: [w], routes: [{match: {prefix: /}, route: {cluster: "+other+"}}]}]}", true)))
	}
	a, b := one.last.Scopes[0], two.last.Scopes[0]
	if a.Clusters["a"] != b.Clusters["a"] || a.Services[0] != b.Services[0] {
		t.Error("equal clusters or listeners are held twice")
	}
	x, y := a.HTTP[0].HTTP.VirtualHosts, b.HTTP[0].HTTP.VirtualHosts
	if x[0] != y[0] || x[1] == y[1] {
		t.Error("equal virtual hosts are held twice, or others once")
	}
	one.want(one.apply(assignments(cla(t, "a", 7))), "l@10.0.0.2>a(7) http:web@10.0.0.1>a(7)>b(3)")
	if got := text(two.last); !strings.Contains(got, "a(1,2)") || two.built() != "=" {
		t.Errorf("the other store has %s", got)
	}
}
