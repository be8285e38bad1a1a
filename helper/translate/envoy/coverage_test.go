// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/mesh"
)

// TestTableNamesRealFields finds typing errors in the table: a rule for a field
// that does not exist would never be used.
func TestTableNamesRealFields(t *testing.T) {
	for name, rules := range table {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for field, rl := range rules.fields {
			fd := mt.Descriptor().Fields().ByName(field)
			switch {
			case fd == nil:
				t.Errorf("%s has no field %q", name, field)
			case rl.walk && fd.Message() == nil:
				t.Errorf("%s.%s: cannot be walked", name, field)
			case rl.walk && fd.Message().FullName() != "google.protobuf.Any" && !fd.IsMap():
				if _, ok := table[fd.Message().FullName()]; !ok {
					t.Errorf("%s.%s: %s is not in the table", name, field, fd.Message().FullName())
				}
			}
		}
		if rules.other != mesh.UnsupportedAction && rules.other != mesh.UnsupportedCondition {
			t.Errorf("%s: a field that is not listed would be %s", name, rules.other)
		}
	}
	for name := range extensions {
		if _, both := table[name]; both {
			t.Errorf("%s is an extension and in the table", name)
		}
	}
}

// generator fills messages at random.
type generator struct {
	r    *rand.Rand
	anys []protoreflect.FullName // what may be packed
}

func newGenerator(seed uint64) *generator {
	g := &generator{r: rand.New(rand.NewPCG(seed, 1))}
	for name := range table {
		g.anys = append(g.anys, name)
	}
	for name := range extensions {
		if _, err := protoregistry.GlobalTypes.FindMessageByName(name); err == nil {
			g.anys = append(g.anys, name)
		}
	}
	slices.Sort(g.anys)
	return g
}

func (g *generator) fill(m protoreflect.Message, depth int) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(g.anys[g.r.IntN(len(g.anys))])
		if err != nil {
			panic(err)
		}
		inner := mt.New()
		if depth < 9 {
			g.fill(inner, depth+1)
		}
		_ = a.MarshalFrom(inner.Interface())
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if g.r.IntN(3) > 0 {
			continue
		}
		if depth > 10 && fd.Message() != nil {
			continue
		}
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil || fd.MapKey().Kind() != protoreflect.StringKind {
				continue
			}
			v := m.Mutable(fd).Map().NewValue()
			g.fill(v.Message(), depth+1)
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString("k").MapKey(), v)
		case fd.IsList():
			for range 1 + g.r.IntN(3) {
				l := m.Mutable(fd).List()
				if fd.Message() == nil {
					l.Append(g.scalar(fd))
					continue
				}
				v := l.NewElement()
				g.fill(v.Message(), depth+1)
				l.Append(v)
			}
		case fd.Message() != nil:
			g.fill(m.Mutable(fd).Message(), depth+1)
		default:
			m.Set(fd, g.scalar(fd))
		}
	}
}

func (g *generator) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	n := []uint64{1, 2, 80, 251, 65535, 4294967295}[g.r.IntN(6)]
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		values := fd.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(g.r.IntN(values.Len())).Number())
	case protoreflect.StringKind:
		return protoreflect.ValueOfString([]string{"10.0.0.1", "::1", "x", "0.0.0.0", "raw_buffer", "http/1.1", ":path", "X-A", "a(b"}[g.r.IntN(9)])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	default:
		return protoreflect.ValueOfUint64(n)
	}
}

// uncovered returns the populated fields that no verdict speaks about: neither of
// the field, nor of what it is in.
func uncovered(m protoreflect.Message, path string, fields map[string]bool, out *[]string) {
	covered := func(p string) bool { return fields[p] || fields[collapsed(p)] }
	if a, ok := m.Interface().(*anypb.Any); ok {
		if inner, err := a.UnmarshalNew(); err == nil {
			uncovered(inner.ProtoReflect(), path, fields, out)
		}
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		p := join(path, string(fd.Name()))
		switch {
		case covered(p):
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if at := fmt.Sprintf("%s[%q]", p, k.String()); !covered(at) {
					uncovered(v.Message(), at, fields, out)
				}
				return true
			})
		case fd.Message() == nil || fd.IsMap():
			*out = append(*out, p)
		case fd.IsList():
			for i := range v.List().Len() {
				if at := fmt.Sprintf("%s[%d]", p, i); !covered(at) {
					uncovered(v.List().Get(i).Message(), at, fields, out)
				}
			}
		default:
			if empty(v.Message()) {
				*out = append(*out, p)
			}
			uncovered(v.Message(), p, fields, out)
		}
		return true
	})
}

// translate translates any of the three kinds, and checks what must always hold.
func translate(t *testing.T, m proto.Message) []mesh.Verdict {
	t.Helper()
	before := proto.Clone(m)
	var verdicts []mesh.Verdict
	var first, second any
	switch m := m.(type) {
	case *listenerv3.Listener:
		l := TranslateListener(m, "s")
		verdicts, first, second = l.Verdicts, l, TranslateListener(m, "s")
		checkServices(t, l)
	case *clusterv3.Cluster:
		c := TranslateCluster(m, "s")
		verdicts, first, second = c.Verdicts, c, TranslateCluster(m, "s")
		if (c.Cluster == nil) != (len(Invalid(verdicts)) > 0) {
			t.Fatalf("cluster %v with %v", c.Cluster, Invalid(verdicts))
		}
		if c.Cluster != nil {
			checkLocalities(t, c.Cluster.Localities)
		}
		if c.Names != nil {
			checkLocalities(t, c.Names.Localities(manyAddresses))
		}
	case *endpointv3.ClusterLoadAssignment:
		a := TranslateAssignment(m, "s")
		verdicts, first, second = a.Verdicts, a, TranslateAssignment(m, "s")
		checkLocalities(t, a.Localities)
	case *routev3.RouteConfiguration:
		rc := TranslateRoutes(m, "s")
		verdicts, first, second = rc.Verdicts, rc.HTTP, TranslateRoutes(m, "s").HTTP
		if (rc.HTTP == nil) != (len(Invalid(verdicts)) > 0) {
			t.Fatalf("routes %v with %v", rc.HTTP, Invalid(verdicts))
		}
		if rc.HTTP != nil {
			checkRoutes(t, rc)
		}
		checkApart(t, m)
	}
	if !reflect.DeepEqual(first, second) {
		t.Fatal("translated twice, it differs")
	}
	if !proto.Equal(before, m) {
		t.Fatal("the resource was changed")
	}
	return verdicts
}

// checkServices: what the model promises about services.
func checkServices(t *testing.T, l *Listener) {
	t.Helper()
	if len(Invalid(l.Verdicts)) > 0 && (len(l.Services) > 0 || len(l.HTTP) > 0 || len(l.References) > 0) {
		t.Fatal("an invalid listener has services")
	}
	names, owned := map[string]bool{}, map[mesh.Frontend]bool{}
	refs := map[string]bool{}
	for _, r := range l.References {
		refs[r.Cluster] = true
	}
	all := l.Services
	for _, h := range l.HTTP {
		svc := h.Join(nil)
		if h.RouteConfig == "" && svc.HTTP != nil {
			checkRoutes(t, h.inline)
		}
		if len(svc.Clusters) == 0 && (svc.HTTP != nil || h.RouteConfig != "") {
			svc.Clusters = []mesh.WeightedCluster{{Cluster: "?", Weight: 1}} // what is not HTTP is refused
			refs["?"] = true
		}
		all = append(all, svc)
	}
	if len(l.Services) > 0 && len(l.HTTP) > 0 {
		t.Fatal("a listener is served in part")
	}
	for _, s := range all {
		if names[s.Name] || len(s.Frontends) == 0 || len(s.Clusters) == 0 || len(s.Clusters) > MaxWeightedClusters {
			t.Fatalf("service %+v", s)
		}
		names[s.Name] = true
		for _, f := range s.Frontends {
			if owned[f] || f.Port == 0 && !l.Rest || f.Prefix != f.Prefix.Masked() || f.Prefix.Addr().Is4In6() || !f.Prefix.IsValid() || f.Protocol.String() == "" {
				t.Fatalf("frontend %+v", f)
			}
			owned[f] = true
		}
		var sum uint64
		for _, c := range s.Clusters {
			sum += uint64(c.Weight)
			if !refs[c.Cluster] {
				t.Fatalf("cluster %q without a reference", c.Cluster)
			}
		}
		if sum == 0 || sum > 1<<32-1 {
			t.Fatalf("weights %d", sum)
		}
	}
}

// checkRoutes: what the model promises about routes.
func checkRoutes(t *testing.T, rc *RouteConfig) {
	t.Helper()
	refs := map[string]bool{}
	for _, r := range rc.References {
		refs[r.Cluster] = true
	}
	domains := map[string]bool{}
	for _, vh := range rc.HTTP.VirtualHosts {
		for _, d := range vh.Domains {
			if domains[d] || d == "" || d != strings.ToLower(d) {
				t.Fatalf("domain %q", d)
			}
			domains[d] = true
		}
		for _, r := range vh.Routes {
			checkRoute(t, r, refs)
		}
	}
}

func checkRoute(t *testing.T, r *mesh.Route, refs map[string]bool) {
	t.Helper()
	actions := 0
	if len(r.Clusters) > 0 {
		actions++
		var sum uint64
		for _, c := range r.Clusters {
			sum += uint64(c.Weight)
			if !refs[c.Cluster] {
				t.Fatalf("cluster %q without a reference", c.Cluster)
			}
		}
		if sum == 0 || sum > 1<<32-1 || len(r.Clusters) > MaxWeightedClusters {
			t.Fatalf("weights %d", sum)
		}
	}
	if d := r.Redirect; d != nil {
		actions++
		if !slices.Contains([]uint16{301, 302, 303, 307, 308}, d.Status) || d.Path != "" && d.Prefix != "" {
			t.Fatalf("redirect %+v", d)
		}
	}
	if d := r.Direct; d != nil {
		actions++
		if d.Status < 200 || d.Status > 599 || len(d.Body) > MaxDirectBody {
			t.Fatalf("direct response %+v", d)
		}
	}
	if r.Unsupported && (actions > 0 || r.Abort != nil) || !r.Unsupported && actions != 1 {
		t.Fatalf("route %+v", r)
	}
	fraction := func(f mesh.Fraction) {
		if f.Numerator > f.Denominator || !slices.Contains([]uint32{100, 10000, 1000000}, f.Denominator) {
			t.Fatalf("fraction %+v", f)
		}
	}
	if a := r.Abort; a != nil {
		fraction(a.Fraction)
		if a.Status < 200 || a.Status > 599 {
			t.Fatalf("abort %+v", a)
		}
	}
	if f := r.Match.Fraction; f != nil {
		fraction(*f)
	}
	regex := func(s mesh.StringMatch) {
		if s.Kind != mesh.StringRegex {
			return
		}
		if _, err := regexp.Compile("^(?:" + s.Value + ")$"); err != nil || s.IgnoreCase {
			t.Fatalf("%+v: %v", s, err)
		}
	}
	if p := r.Match.Path; p.Kind == mesh.PathRegex {
		regex(mesh.StringMatch{Kind: mesh.StringRegex, Value: p.Value, IgnoreCase: p.IgnoreCase})
	}
	for _, h := range r.Match.Headers {
		if h.Name == "" || h.Name != strings.ToLower(h.Name) || h.Invert && h.Kind >= mesh.HeaderPresent ||
			strings.HasPrefix(h.Name, ":") && h.Name != ":method" && h.Name != ":authority" {
			t.Fatalf("header %+v", h)
		}
		regex(h.Match)
	}
	for _, q := range r.Match.Query {
		if q.Name == "" {
			t.Fatalf("query %+v", q)
		}
		regex(q.Match)
	}
}

// checkLocalities: what the model promises about endpoints.
func checkLocalities(t *testing.T, list []mesh.Locality) {
	t.Helper()
	for _, l := range list {
		for _, e := range l.Endpoints {
			if e.Weight == 0 || e.Addr.Port() == 0 || !e.Addr.IsValid() || e.Addr.Addr().Is4In6() || e.Addr.Addr().Zone() != "" {
				t.Fatalf("endpoint %+v", e)
			}
		}
	}
}

// TestEveryPopulatedFieldHasAVerdict fills resources at random and looks for
// fields that were passed over in silence.
func TestEveryPopulatedFieldHasAVerdict(t *testing.T) {
	var valid, whole int
	for seed := range uint64(3000) {
		g := newGenerator(seed)
		m := []proto.Message{&listenerv3.Listener{}, &clusterv3.Cluster{}, &endpointv3.ClusterLoadAssignment{}, &routev3.RouteConfiguration{}}[seed%4]
		g.fill(m.ProtoReflect(), 0)
		verdicts := translate(t, m)
		if len(verdicts) > maxVerdicts && seed%4 != 3 || len(verdicts) > maxRouteVerdicts {
			continue // the rest is counted, not shown
		}
		fields := map[string]bool{}
		for _, v := range verdicts {
			fields[v.Field] = true
		}
		if len(Invalid(verdicts)) == 0 {
			valid++
		}
		whole++
		var missing []string
		uncovered(m.ProtoReflect(), "", fields, &missing)
		if len(missing) > 0 {
			t.Fatalf("seed %d: no verdict about %s in:\n%s", seed, strings.Join(missing, ", "), list(verdicts))
		}
	}
	if valid < 100 || whole < 1000 {
		t.Fatalf("only %d resources were valid, %d could be looked at: the test shows little", valid, whole)
	}
}

// TestNewerFieldsAreReported: a field that this build has never heard of.
func TestNewerFieldsAreReported(t *testing.T) {
	unknown := []byte{0xf8, 0xff, 0x07, 0x01} // field 16383, varint 1
	l := message(t, &listenerv3.Listener{}, "name: l\n"+vip+"filter_chains: [{filter_chain_match: {destination_port: 80}, filters: ["+tcp("cluster: c")+"]}]")
	l.ProtoReflect().SetUnknown(unknown)
	got := TranslateListener(l, "")
	checkVerdicts(t, got.Verdicts, []want{{"?", mesh.UnsupportedAction, "newer than this build"}})
	if len(got.Services) != 1 {
		t.Error("not served")
	}
	l.GetFilterChains()[0].GetFilterChainMatch().ProtoReflect().SetUnknown(unknown)
	got = TranslateListener(l, "")
	checkVerdicts(t, got.Verdicts, []want{{"filter_chains[0].filter_chain_match.?", mesh.UnsupportedCondition, "newer than this build"}})
	if len(got.Services) != 0 {
		t.Error("served although a condition is not understood")
	}
}

// TestManyVerdictsAreCounted: what one resource reports is bounded.
func TestManyVerdictsAreCounted(t *testing.T) {
	text := "cluster_name: c\nendpoints: [{lb_endpoints: ["
	for range 1000 {
		text += "{endpoint: {address: {pipe: {path: /x}}}},"
	}
	got := TranslateAssignment(message(t, &endpointv3.ClusterLoadAssignment{}, text+"]}]"), "")
	if n := len(got.Verdicts); n != maxVerdicts+1 {
		t.Fatalf("%d verdicts", n)
	}
	if last := got.Verdicts[maxVerdicts]; !strings.Contains(last.Message, "more verdicts") || last.Class != mesh.UnsupportedAction {
		t.Errorf("last %+v", last)
	}
	text = "cluster_name: c\nendpoints: [{lb_endpoints: ["
	for range 1000 {
		text += "{endpoint: {address: {pipe: {path: /x}}}},"
	}
	text += "{endpoint: {address: {socket_address: {address: 1.1.1.1, port_value: 0}}}}]}]"
	got = TranslateAssignment(message(t, &endpointv3.ClusterLoadAssignment{}, text), "")
	if len(Invalid(got.Verdicts)) == 0 || got.Localities != nil {
		t.Error("an error is lost among the verdicts")
	}
}

// FuzzTranslate: mutated protobufs never break the promises of the model.
func FuzzTranslate(f *testing.F) {
	for seed := range uint64(60) {
		g := newGenerator(seed)
		m := []proto.Message{&listenerv3.Listener{}, &clusterv3.Cluster{}, &endpointv3.ClusterLoadAssignment{}, &routev3.RouteConfiguration{}}[seed%4]
		g.fill(m.ProtoReflect(), 4)
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(seed%4), data)
	}
	for _, y := range []string{vip + "filter_chains: [" + chainTo("c") + "]"} {
		data, err := proto.Marshal(message(f, &listenerv3.Listener{}, "name: l\n"+y))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(0), data)
	}
	for _, m := range goldenMessages(f) {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		kind := uint8(0)
		if _, ok := m.(*routev3.RouteConfiguration); ok {
			kind = 3
		}
		f.Add(kind, data)
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		m := []proto.Message{&listenerv3.Listener{}, &clusterv3.Cluster{}, &endpointv3.ClusterLoadAssignment{}, &routev3.RouteConfiguration{}}[kind%4]
		if proto.Unmarshal(data, m) != nil {
			return
		}
		translate(t, m)
	})
}
