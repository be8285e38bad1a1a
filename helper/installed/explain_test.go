// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
	"kmesh/test/match"
)

// say writes an answer in short.
func say(r *apiv1.ExplainResponse) string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if r.Service != "" {
		add("%s at %s", r.Service, r.Frontend)
	}
	if r.Http {
		add("guess %s", sharesOf(r.Guess))
	}
	if r.Local {
		add("local")
	}
	if r.Domain != "" {
		add("domain %s", r.Domain)
	}
	for _, o := range r.Outcomes {
		add("%v %d %s: %s %s", o.Share, o.Index, o.Route, o.Action, sharesOf(o.Clusters))
	}
	if len(r.Shadowed) > 0 {
		add("shadowed %v", r.Shadowed)
	}
	return strings.Join(out, "\n")
}

func sharesOf(list []*apiv1.ClusterShare) string {
	var out []string
	for _, c := range list {
		out = append(out, fmt.Sprintf("%s=%v%v", c.Name, c.Share, c.Endpoints))
	}
	return strings.Join(out, " ")
}

func path(value string) mesh.RouteMatch {
	return mesh.RouteMatch{Path: mesh.PathMatch{Value: value}}
}

// forward makes a route to one cluster.
func forward(name string, m mesh.RouteMatch, cluster string) *mesh.Route {
	return &mesh.Route{Name: name, Match: m, Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}}}
}

// shop installs a service with every kind of route.
func shop(b *bed) (service uint32, clusters map[string]uint32) {
	clusters = map[string]uint32{
		"v1":   b.cluster("v1", bpf.KindEndpoints, "10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.1:8080"),
		"v2":   b.cluster("v2", bpf.KindEndpoints, "10.1.0.3:8080"),
		"none": b.cluster("none", bpf.KindEndpoints),
		"pass": b.cluster("pass", bpf.KindPassthrough),
	}
	service = b.service("reviews_9080", bpf.ServiceHTTP, []bpf.Share{{Cluster: clusters["v1"], Weight: 1}}, "10.96.0.11:9080", "[fd00::11]:9080")
	half := path("/half")
	half.Fraction = &mesh.Fraction{Numerator: 1, Denominator: 4}
	never := path("/half")
	never.Fraction = &mesh.Fraction{Denominator: 100}
	jason := mesh.RouteMatch{Headers: []mesh.HeaderMatch{{Name: "end-user", Match: mesh.StringMatch{Value: "jason"}}}}
	b.http(service, 0, &mesh.HTTP{IgnorePort: true, VirtualHosts: []*mesh.VirtualHost{{
		Name: "reviews", Domains: []string{"reviews", "*.reviews", "reviews.*"},
		Routes: []*mesh.Route{
			forward("jason", jason, "v2"),
			forward("never", never, "v2"),
			forward("quarter", half, "v2"),
			{Name: "canary", Match: path("/half"), Clusters: []mesh.WeightedCluster{{Cluster: "v1", Weight: 80}, {Cluster: "v2", Weight: 20}}},
			{Name: "old", Match: path("/old")},
			{Name: "page", Match: path("/page")},
			{Name: "closed", Match: path("/closed"), Unsupported: true},
			forward("flaky", path("/flaky"), "v1"),
			forward("broken", path("/broken"), "v1"),
			forward("", path("/empty"), "none"),
			{Name: "nowhere", Match: path("/nowhere")},
			forward("hash", path("/hash"), "v1"),
			forward("lost", path("/lost"), "v1"),
			{Name: "plain", Match: path("/plain")},
			{Name: "authority", Match: path("/authority")},
		},
	}}}, clusters)
	// What the model's routes do not say goes in by hand.
	routes := b.rt.Routes()
	routes[4].Kind = bpf.RouteReply
	routes[4].Reply = b.reply(301, "HTTP/1.1 301 Moved Permanently\r\nlocation: https://", bpf.Part{Kind: bpf.PartHost}, ":8443/new",
		bpf.Part{Kind: bpf.PartPath, From: 4}, bpf.Part{Kind: bpf.PartQuery}, "\r\ncontent-length: 0\r\n\r\n")
	routes[5].Kind = bpf.RouteReply
	routes[5].Reply = b.reply(200, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", bpf.Part{Kind: bpf.PartBody, From: 40, Len: 5})
	routes[7].Abort, routes[7].AbortReply = 1<<31, 500
	routes[8].AbortAlways, routes[8].AbortReply = 1, 418
	routes[11].Hash, routes[11].HashLen = bpf.HashHeader, 6
	copy(routes[11].HashName[:], "x-user")
	b.rt.Shares()[routes[12].Shares].Cluster = 1 << 20 // no such cluster
	routes[13].Kind, routes[13].Reply = bpf.RouteReply, bpf.ReplyFirst+1<<20
	routes[14].Kind = bpf.RouteReply
	routes[14].Reply = b.reply(302, "HTTP/1.1 302 Found\r\nLocation: https://", bpf.Part{Kind: bpf.PartNot80}, "/", bpf.Part{Kind: bpf.PartAuthority},
		bpf.Part{Kind: bpf.PartQuery}, "\r\n\r\n")
	return service, clusters
}

// ask explains a request of pod shop/web; a line "A: b" of the text is a header.
func (b *bed) ask(address, target string, port uint32, headers ...string) (*apiv1.ExplainResponse, error) {
	method, target, _ := strings.Cut(target, " ")
	text := method + " " + target + " HTTP/1.1\r\n" + strings.Join(append(headers, "", ""), "\r\n")
	return b.Explain(context.Background(), &apiv1.ExplainRequest{
		Namespace: "shop", Name: "web", Address: address, Port: port, Head: []byte(text),
	})
}

func TestExplain(t *testing.T) {
	b := newBed(t)
	_, clusters := shop(b)
	b.service("mysql", 0, []bpf.Share{{Cluster: clusters["v1"], Weight: 3}, {Cluster: clusters["pass"], Weight: 1}}, "10.0.0.0/8 3306")
	wild := b.service("0.0.0.0_80", bpf.ServiceHTTP, nil, "0.0.0.0/0 80", "10.9.9.9:80")
	b.http(wild, bpf.HTTPLocal|bpf.HTTPStarOnly, &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{{
		Name: "any", Domains: []string{"*"}, Routes: []*mesh.Route{forward("", path("/"), "pass")},
	}}}, clusters)
	k := frontendKey(0, "10.9.9.9:80")
	b.must(b.rt.Guesses.Put(&k, clusters["v2"]))
	b.service("half", bpf.ServiceHTTP, nil, "10.96.0.12:9080")
	named := b.service("catalog", bpf.ServiceHTTP, nil, "10.96.0.13:80")
	b.http(named, bpf.HTTPLocal, &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{{
		Name: "catalog", Domains: []string{"catalog"}, Routes: []*mesh.Route{forward("", path("/a"), "v1")},
	}}}, clusters)
	b.frontend(0, "10.96.0.99:81", 1<<20)

	const vip = "reviews_9080 at 10.96.0.11:9080\nguess v1=1[10.1.0.1:8080 10.1.0.1:8080 10.1.0.2:8080]\n"
	const (
		v1 = "v1=1[10.1.0.1:8080 10.1.0.1:8080 10.1.0.2:8080]"
		v2 = "v2=1[10.1.0.3:8080]"
	)
	host := "Host: Reviews:9080"
	tests := []struct {
		name, address, target string
		port                  uint32
		headers               []string
		want                  string
	}{
		{"fraction", "10.96.0.11", "GET /half", 9080, []string{host}, vip + `domain reviews
0.25 2 reviews/quarter: forwarded ` + v2 + `
0.75 3 reviews/canary: forwarded v1=0.8[10.1.0.1:8080 10.1.0.1:8080 10.1.0.2:8080] v2=0.2[10.1.0.3:8080]`},
		{"header, and later ones", "10.96.0.11", "GET /half", 9080, []string{host, "end-user: jason"}, vip + `domain reviews
1 0 reviews/jason: forwarded ` + v2 + `
shadowed [reviews/never reviews/quarter reviews/canary]`},
		{"IPv6", "fd00::11", "GET /hash", 9080, []string{"host: a.reviews"}, strings.Replace(vip, "10.96.0.11:9080", "[fd00::11]:9080", 1) + `domain *.reviews
1 11 reviews/hash: forwarded, by a hash of header x-user ` + v1},
		{"redirect", "::ffff:10.96.0.11", "GET /old/a?b=c", 9080, []string{"Host: Reviews.x:1"}, vip + `domain reviews.*
1 4 reviews/old: answered 301 to https://Reviews.x:8443/new/a?b=c `},
		{"direct response", "10.96.0.11", "GET /page", 9080, []string{host}, vip + `domain reviews
1 5 reviews/page: answered 200 with 5 bytes `},
		{"unsupported", "10.96.0.11", "GET /closed", 9080, []string{host}, vip + `domain reviews
1 6 reviews/closed: answered 503: the route has a condition or an action that cannot be served (kmeshctl status) `},
		{"abort", "10.96.0.11", "GET /flaky", 9080, []string{host}, vip + `domain reviews
0.5 7 reviews/flaky: answered 500 (fault) 
0.5 7 reviews/flaky: forwarded ` + v1},
		{"abort always", "10.96.0.11", "GET /broken", 9080, []string{host}, vip + `domain reviews
1 8 reviews/broken: answered 418 (fault) `},
		{"no endpoint", "10.96.0.11", "GET /empty", 9080, []string{host}, vip + `domain reviews
1 9 reviews/#9: forwarded none=1[]`},
		{"no cluster", "10.96.0.11", "GET /nowhere", 9080, []string{host}, vip + `domain reviews
1 10 reviews/nowhere: answered 503: the route has no cluster `},
		{"cluster gone", "10.96.0.11", "GET /lost", 9080, []string{host}, vip + `domain reviews
1 12 reviews/lost: forwarded (id 1048576, gone)=1[]`},
		{"reply gone", "10.96.0.11", "GET /plain", 9080, []string{host}, vip + `domain reviews
1 13 reviews/plain: answered 503: its reply 1049600 is not there `},
		{"no route", "10.96.0.11", "GET /", 9080, []string{host}, vip + `domain reviews
1 -1 : answered 404: no route matches `},
		{"no virtual host", "10.96.0.11", "GET /", 9080, []string{"Host: Ratings:9080"}, vip + `1 -1 : answered 404: no virtual host has "ratings" `},
		{"rejected", "10.96.0.11", "GET /", 9080, nil, vip + `1 -1 : answered 400, and the connection ends: rule host-missing at byte 18 `},
		{"pinned", "10.96.0.11", "CONNECT reviews:9080", 9080, []string{host}, vip + `1 -1 : not routed by request (connect): the connection stays where it is ` + v1},
		{"local, pinned", "10.96.0.13", "CONNECT reviews:9080", 80, []string{host}, `catalog at 10.96.0.13:80
guess 
local
1 -1 : not routed by request (connect): the connection stays where it is: refused, as there is no cluster for such connections `},
		{"prefix", "10.2.3.4", "GET /", 3306, []string{host}, `mysql at the prefix that 10.2.3.4 is in, port 3306
1 -1 : the service is not routed by request: its connections are balanced v1=0.75[10.1.0.1:8080 10.1.0.1:8080 10.1.0.2:8080] pass=0.25[]`},
		{"a host too long", "10.96.0.11", "GET /", 9080, []string{"Host: " + strings.Repeat("a", bpf.MaxHost) + ".reviews"}, vip + `1 -1 : answered 404: no virtual host has "` + strings.Repeat("a", bpf.MaxHost) + `.reviews" `},
		{"redirect to the authority", "10.96.0.11", "GET /authority", 9080, []string{host}, vip + `domain reviews
1 14 reviews/authority: answered 302 to https://Reviews:9080/Reviews:9080 `},
		{"redirect without port 80", "10.96.0.11", "GET /authority?x", 9080, []string{"Host: reviews:80"}, vip + `domain reviews
1 14 reviews/authority: answered 302 to https://reviews/reviews:80?x `},
		{"star only", "192.0.2.1", "GET /", 80, []string{"Host: catalog"}, `0.0.0.0_80 at the prefix that 192.0.2.1 is in, port 80
guess 
local
domain *
1 0 any/#0: forwarded pass=1[]`},
		{"guess of a frontend", "10.9.9.9", "GET /", 80, []string{"Host: x"}, `0.0.0.0_80 at 10.9.9.9:80
guess ` + v2 + `
local
domain *
1 0 any/#0: forwarded pass=1[]`},
		{"nothing there", "10.96.0.11", "GET /", 9081, []string{host}, "1 -1 : nothing has port 9081 of this address: the connection goes where the client meant it "},
		{"no such service", "10.96.0.99", "GET /", 81, []string{host}, "(id 1048576, gone) at 10.96.0.99:81\n1 -1 : refused: the service is not in the tables "},
		{"no routing", "10.96.0.12", "GET /", 9080, []string{host}, "half at 10.96.0.12:9080\n1 -1 : answered 503: the service's routing is not in the tables "},
		{"by name", "", "GET /b", 80, []string{"Host: catalog"}, `catalog at 10.96.0.13:80
guess 
local
domain catalog
1 -1 : answered 404: no route matches `},
		{"by name, any", "", "GET /", 80, []string{"Host: example.com"}, `0.0.0.0_80 at 0.0.0.0/0 port 80
guess 
local
domain *
1 0 any/#0: forwarded pass=1[]`},
		{"by name, nothing", "", "GET /", 8080, []string{host}, "1 -1 : nothing has port 8080 of this address: the connection goes where the client meant it "},
		{"by name, of several on the port", "", "GET /", 9080, []string{host}, vip + `domain reviews
1 -1 : answered 404: no route matches `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := b.ask(tt.address, tt.target, tt.port, tt.headers...)
			if err != nil {
				t.Fatal(err)
			}
			if text := say(got); text != tt.want {
				t.Errorf("got\n%s\nwant\n%s", text, tt.want)
			}
		})
	}
}

// TestExplainRefused: what cannot be answered says why.
func TestExplainRefused(t *testing.T) {
	b := newBed(t)
	service, _ := shop(b)
	b.service("other", 0, nil, "10.96.0.12:9080")
	b.service("third", 0, nil, "10.96.0.14:9080")
	whole := []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	in := func(change func(*apiv1.ExplainRequest)) *apiv1.ExplainRequest {
		r := &apiv1.ExplainRequest{Namespace: "shop", Name: "web", Address: "10.96.0.11", Port: 9080, Head: whole}
		change(r)
		return r
	}
	for name, tt := range map[string]struct {
		in   *apiv1.ExplainRequest
		code codes.Code
		text string
	}{
		"pod":         {in(func(r *apiv1.ExplainRequest) { r.Name = "x" }), codes.NotFound, "kmeshctl pods"},
		"pod's entry": {in(func(r *apiv1.ExplainRequest) { r.Name = "away" }), codes.NotFound, "table of pods"},
		"port":        {in(func(r *apiv1.ExplainRequest) { r.Port = 65536 }), codes.InvalidArgument, "not a port"},
		"address":     {in(func(r *apiv1.ExplainRequest) { r.Address = "x" }), codes.InvalidArgument, "address"},
		"head":        {in(func(r *apiv1.ExplainRequest) { r.Head = whole[:20] }), codes.InvalidArgument, "not whole"},
		"several":     {in(func(r *apiv1.ExplainRequest) { r.Address = "" }), codes.InvalidArgument, `"other", "reviews_9080", "third"`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := b.Explain(context.Background(), tt.in); status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.code, tt.text)
			}
		})
	}

	// Tables that lead astray are errors, and no end of the helper.
	good := bpf.VHost{Slab: 1, N_routes: 15}
	star := bpf.HTTP{Star: 77, Flags: bpf.HTTPStarOnly}
	b.must(b.rt.HTTP.Put(service, &star))
	for name, tt := range map[string]struct {
		change func(*bpf.VHost)
		text   string
	}{
		"no slab":         {func(v *bpf.VHost) { v.Slab = 1 << 20 }, "outside the slabs"},
		"end of a slab":   {func(v *bpf.VHost) { v.Program = bpf.SlabSize - 4 }, "outside the slabs"},
		"no program":      {func(v *bpf.VHost) { v.Slab = 0 }, "no program"},
		"routes":          {func(v *bpf.VHost) { v.Routes = math.MaxUint32 }, "outside their table"},
		"too few routes":  {func(v *bpf.VHost) { v.N_routes = 2 }, "names route"},
		"damaged program": {func(v *bpf.VHost) { v.Slab = 2 }, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			copy(b.rt.SlabMemory()[2*bpf.SlabSize:], "KAM1\x80\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
			v := good
			tt.change(&v)
			b.must(b.rt.VHosts.Put(uint32(77), &v))
			if got, err := b.ask("10.96.0.11", "GET /half", 9080, "Host: x"); err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, %v, want an error with %q", got, err, tt.text)
			}
		})
	}
}

// TestScope: a pod sees the frontends of its own scope only.
func TestScope(t *testing.T) {
	b := newBed(t)
	scope := b.name(bpf.NameScope, "shop/web/")
	b.pod(7, scope)
	id := b.service("s", 0, nil, "10.0.0.1:80")
	if got, err := b.ask("10.0.0.1", "GET /", 80, "Host: x"); err != nil || got.Service != "" || got.Scope != "shop/web/" {
		t.Errorf("a frontend of another scope: %v, %v", got, err)
	}
	b.frontend(scope, "10.0.0.1:80", id)
	if got, err := b.ask("10.0.0.1", "GET /", 80, "Host: x"); err != nil || got.Service != "s" {
		t.Errorf("its own: %v, %v", got, err)
	}
}

// TestRandom holds the way through the tables against the reference.
func TestRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("KMESH_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	g := match.NewGenerator(seed)
	b := newBed(t)
	routed := 0
	for step := range 60 {
		cfg := g.Config()
		service := b.service("s", bpf.ServiceHTTP, nil, "10.0.0.1:80")
		b.routes, b.share = 0, 0
		b.http(service, 0, cfg, map[string]uint32{})
		for range 30 {
			req := g.Request(cfg)
			got, err := b.Explain(context.Background(), &apiv1.ExplainRequest{Namespace: "shop", Name: "web", Address: "10.0.0.1", Port: 80, Head: req})
			parsed, out := head.ParseRequest(req)
			if out.Kind == head.Incomplete {
				if status.Code(err) != codes.InvalidArgument {
					t.Fatalf("seed %d, step %d: a head that is not whole: %v", seed, step, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("seed %d, step %d: %v\n%s", seed, step, err, match.Format(cfg, req))
			}
			want := []string{"-1"}
			if out.Kind == head.Route {
				if vh := explain.FindVirtualHost(cfg, parsed.Authority); vh != nil {
					routed++
					want = reference(vh, &parsed)
				}
			}
			var said []string
			for _, o := range got.Outcomes {
				text := strconv.Itoa(int(o.Index))
				if o.Index >= 0 {
					text = o.Route
				}
				said = append(said, text)
			}
			if !slices.Equal(said, want) {
				t.Fatalf("seed %d, step %d: got %q, want %q\n%s", seed, step, said, want, match.Format(cfg, req))
			}
		}
	}
	if routed == 0 {
		t.Error("no request was routed")
	}
}

// reference lists the routes that a request may take.
func reference(vh *mesh.VirtualHost, r *head.Request) []string {
	var out []string
	for i, route := range vh.Routes {
		alone := &mesh.VirtualHost{Routes: []*mesh.Route{route}}
		if n, _ := explain.Match(alone, r, func(mesh.Fraction) bool { return true }); n != 0 {
			continue
		}
		f := route.Match.Fraction
		if f != nil && f.Numerator == 0 {
			continue
		}
		name := route.Name
		if name == "" {
			name = "#" + strconv.Itoa(i)
		}
		out = append(out, vh.Name+"/"+name)
		if f == nil || f.Numerator >= f.Denominator {
			return out
		}
	}
	return append(out, "-1")
}
