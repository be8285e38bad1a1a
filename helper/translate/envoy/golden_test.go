// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
)

// goldenHost is the host of a request that names none, goldenVirtualHost the
// virtual host of an answer that names none.
const (
	goldenHost        = "reviews"
	goldenVirtualHost = "reviews.default.svc.cluster.local:9080"
)

// golden is one file of testdata/http: resources as istiod makes them of a
// VirtualService, an HTTPRoute or the like, what is not enforced of them, and where
// requests go.
type golden struct {
	About     string            `json:"about"`
	Resources []json.RawMessage `json:"resources"`
	// Verdicts that are neither enforced nor default: "field class".
	Verdicts []string `json:"verdicts"`
	// Refuses: a route is answered 503 because of a condition.
	Refuses  bool `json:"refuses"`
	Requests []struct {
		Request string         `json:"request"` // method and target
		Host    string         `json:"host"`
		Headers map[string]any `json:"headers"` // a value, or a list of them
		Draw    bool           `json:"draw"`    // a fraction takes the request
		Want    string         `json:"want"`
	} `json:"requests"`
}

func readGolden(t testing.TB) map[string]*golden {
	t.Helper()
	files, err := filepath.Glob("testdata/http/*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	out := map[string]*golden{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		g := &golden{}
		if err := yaml.UnmarshalStrict(data, g); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out[strings.TrimSuffix(filepath.Base(f), ".yaml")] = g
	}
	return out
}

// service translates a case: the listener's service, if the case has one, else one
// that has the routes.
func (g *golden) service(t *testing.T) (*mesh.Service, []mesh.Verdict) {
	t.Helper()
	var verdicts []mesh.Verdict
	var rc *RouteConfig
	var lis *Listener
	for _, raw := range g.Resources {
		packed := &anypb.Any{}
		if err := protojson.Unmarshal(raw, packed); err != nil {
			t.Fatal(err)
		}
		m, err := packed.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *listenerv3.Listener:
			lis = TranslateListener(m, "istiod")
			verdicts = append(verdicts, lis.Verdicts...)
		case *routev3.RouteConfiguration:
			rc = TranslateRoutes(m, "istiod")
			verdicts = append(verdicts, rc.Verdicts...)
		default:
			t.Fatalf("a resource of type %T", m)
		}
	}
	if lis == nil {
		return &mesh.Service{Name: rc.Name, HTTP: rc.HTTP}, verdicts
	}
	if len(lis.HTTP) != 1 || len(lis.Services) > 0 {
		t.Fatalf("%d HTTP services, %d others:\n%s", len(lis.HTTP), len(lis.Services), list(verdicts))
	}
	if want := lis.HTTP[0].RouteConfig; want != "" && (rc == nil || rc.Name != want) {
		t.Fatalf("no routes %q", want)
	}
	return lis.HTTP[0].Join(rc), verdicts
}

// TestGolden: the verdicts of each case, where its requests go, and no route that
// is refused without a reason.
func TestGolden(t *testing.T) {
	refused := 0
	for name, g := range readGolden(t) {
		t.Run(name, func(t *testing.T) {
			svc, verdicts := g.service(t)
			var got []string
			for _, v := range verdicts {
				if v.Class != mesh.Enforced && v.Class != mesh.Default {
					got = append(got, v.Field+" "+v.Class.String())
				}
			}
			want := slices.Clone(g.Verdicts)
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("verdicts\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			refuses := false
			for _, vh := range svc.HTTP.VirtualHosts {
				for _, r := range vh.Routes {
					refuses = refuses || r.Unsupported
				}
			}
			if refuses != g.Refuses {
				t.Errorf("refuses: %v, want %v", refuses, g.Refuses)
			}
			if len(g.Requests) == 0 {
				t.Error("no request")
			}
			for _, r := range g.Requests {
				host := r.Host
				if host == "" {
					host = goldenHost
				}
				text := r.Request + " HTTP/1.1\r\nHost: " + host + "\r\n"
				for _, h := range slices.Sorted(maps.Keys(r.Headers)) {
					values, ok := r.Headers[h].([]any)
					if !ok {
						values = []any{r.Headers[h]}
					}
					for _, v := range values {
						text += fmt.Sprintf("%s: %v\r\n", h, v)
					}
				}
				got := answer(t, svc.HTTP, text+"\r\n", r.Draw)
				if strings.Contains(got, "unsupported") && !strings.Contains(r.Want, "unsupported") {
					t.Errorf("unexpected 503")
					refused++
				}
				if got != r.Want {
					t.Errorf("%s (%s, %v)\ngot  %s\nwant %s", r.Request, host, r.Headers, got, r.Want)
				}
			}
		})
	}
	if refused > 0 {
		t.Errorf("%d unexpected 503", refused)
	}
}

// answer is what happens to one request, in words.
func answer(t *testing.T, h *mesh.HTTP, text string, draw bool) string {
	t.Helper()
	req, out := head.ParseRequest([]byte(text))
	if out.Kind != head.Route {
		t.Fatalf("%q: %v", text, out)
	}
	vh := explain.FindVirtualHost(h, req.Authority)
	if vh == nil {
		return "404 no virtual host"
	}
	i, _ := explain.Match(vh, &req, func(mesh.Fraction) bool { return draw })
	if i < 0 {
		return "404 no route"
	}
	at := fmt.Sprint(i)
	if vh.Name != goldenVirtualHost {
		at = vh.Name + " " + at
	}
	route := vh.Routes[i]
	switch {
	case route.Unsupported:
		return at + " unsupported"
	case route.Abort != nil && route.Abort.Fraction.Numerator == route.Abort.Fraction.Denominator:
		return fmt.Sprintf("%s abort %d", at, route.Abort.Status)
	case route.Abort != nil && draw:
		return fmt.Sprintf("%s abort %d %d/%d", at, route.Abort.Status, route.Abort.Fraction.Numerator, route.Abort.Fraction.Denominator)
	case route.Redirect != nil:
		return fmt.Sprintf("%s redirect %d %s", at, route.Redirect.Status, explain.Location(route.Redirect, &route.Match.Path, &req))
	case route.Direct != nil:
		return fmt.Sprintf("%s direct %d %s", at, route.Direct.Status, route.Direct.Body)
	case len(route.Clusters) == 1:
		return at + " cluster " + route.Clusters[0].Cluster
	}
	at += " clusters"
	for _, c := range route.Clusters {
		at += fmt.Sprintf(" %s=%d", c.Cluster, c.Weight)
	}
	return at
}

// TestGoldenModel: what each case is in the model, as a whole.
func TestGoldenModel(t *testing.T) {
	const file = "testdata/http.golden"
	cases := readGolden(t)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		svc, _ := cases[name].service(t)
		fmt.Fprintf(&b, "%s: %s\n", name, cases[name].About)
		for _, f := range svc.Frontends {
			fmt.Fprintf(&b, "  frontend %s %d %s\n", f.Prefix, f.Port, f.Protocol)
		}
		for _, c := range svc.Clusters {
			fmt.Fprintf(&b, "  else %s=%d\n", c.Cluster, c.Weight)
		}
		fmt.Fprintf(&b, "  ignore port %v\n", svc.HTTP.IgnorePort)
		for _, vh := range svc.HTTP.VirtualHosts {
			fmt.Fprintf(&b, "  virtual host %s: %s\n", vh.Name, strings.Join(vh.Domains, " "))
			for i, r := range vh.Routes {
				fmt.Fprintf(&b, "    %d %s\n", i, modelOf(r))
			}
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, old := strings.Split(b.String(), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(got), len(old)) {
		if i >= len(got) || i >= len(old) || got[i] != old[i] {
			t.Fatalf("%s differs at line %d (write it again with -update, and read the difference)", file, i+1)
		}
	}
}

// modelOf writes every field of a route that is set.
func modelOf(r *mesh.Route) string {
	text := fmt.Sprintf("%q %+v", r.Name, r.Match.Path)
	for _, h := range r.Match.Headers {
		text += fmt.Sprintf(" header %+v", h)
	}
	for _, q := range r.Match.Query {
		text += fmt.Sprintf(" query %+v", q)
	}
	if r.Match.Fraction != nil {
		text += fmt.Sprintf(" fraction %+v", *r.Match.Fraction)
	}
	if r.Abort != nil {
		text += fmt.Sprintf(" abort %+v", *r.Abort)
	}
	switch {
	case r.Unsupported:
		text += " -> unsupported"
	case r.Redirect != nil:
		text += fmt.Sprintf(" -> redirect %+v", *r.Redirect)
	case r.Direct != nil:
		text += fmt.Sprintf(" -> direct %d %q", r.Direct.Status, r.Direct.Body)
	default:
		text += fmt.Sprintf(" -> %+v", r.Clusters)
		if r.Hash != (mesh.Hash{}) {
			text += fmt.Sprintf(" by %+v", r.Hash)
		}
	}
	return text
}
