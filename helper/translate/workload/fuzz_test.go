// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload/address"
	"kmesh/helper/translate/workload/policy"
)

// populated calls f for each field of m that is populated, below it too.
func populated(m protoreflect.Message, path string, f func(path string)) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := join(path, string(fd.Name()))
		f(at)
		walked := table[m.Descriptor().FullName()][fd.Name()].walk
		switch {
		case !walked || fd.Message() == nil:
		case fd.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				populated(v.Message(), at+"[]", f)
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				populated(v.List().Get(i).Message(), at+"[]", f)
			}
		default:
			populated(v.Message(), at, f)
		}
		return true
	})
}

// checkVerdicts: every populated field has a verdict, of itself or of what is inside it.
func checkVerdicts(t *testing.T, m protoreflect.Message, verdicts []mesh.Verdict) {
	t.Helper()
	if len(verdicts) > maxVerdicts {
		return // some are counted only
	}
	populated(m, "", func(path string) {
		if !slices.ContainsFunc(verdicts, func(v mesh.Verdict) bool {
			field := collapsed(v.Field)
			return field == path || strings.HasPrefix(field, path+".") || strings.HasPrefix(field, path+"[")
		}) {
			t.Fatalf("no verdict for %s among %v", path, verdicts)
		}
	})
}

// FuzzTranslate: whatever a control plane sends, each field gets a verdict, the result is
// the same each time, what is invalid is not used, and what is used keeps the promises of
// the model.
func FuzzTranslate(f *testing.F) {
	for _, g := range readGolden(f) {
		for _, m := range g.resources(f) {
			data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			_, isPolicy := m.(*policy.Authorization)
			f.Add(data, isPolicy)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, isPolicy bool) {
		if isPolicy {
			m := &policy.Authorization{}
			if proto.Unmarshal(data, m) != nil {
				return
			}
			a := TranslateAuthorization(m, "s")
			if !reflect.DeepEqual(a, TranslateAuthorization(m, "s")) {
				t.Fatal("translated twice, it differs")
			}
			checkVerdicts(t, m.ProtoReflect(), a.Verdicts)
			if bad := slices.ContainsFunc(a.Verdicts, invalid); bad == (a.Policy != nil) {
				t.Fatalf("policy %v with %v", a.Policy, a.Verdicts)
			}
			if a.Policy != nil && len(a.Policy.Rules) == 0 && a.Policy.Matches(mesh.AuthPeer{}) {
				t.Fatal("no rules, and it matches")
			}
			return
		}
		m := &address.Address{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		a := TranslateAddress(m, "s")
		if !reflect.DeepEqual(a, TranslateAddress(m, "s")) {
			t.Fatal("translated twice, it differs")
		}
		switch {
		case m.GetService() != nil:
			checkVerdicts(t, m.GetService().ProtoReflect(), a.Verdicts)
		case m.GetWorkload() != nil:
			checkVerdicts(t, m.GetWorkload().ProtoReflect(), a.Verdicts)
		}
		if bad := slices.ContainsFunc(a.Verdicts, invalid); bad == (a.Service != nil || a.Workload != nil) {
			t.Fatalf("%+v with %v", a, a.Verdicts)
		}
		x := NewIndex(Here{Node: "n1", Network: "net"})
		x.Put(a)
		// Somebody serves what a service asks for, and somebody asks for what a workload serves.
		if a.Service != nil {
			w := aWorkload("w", 0, 1)
			w.GetWorkload().Services[a.Service.Key] = &address.PortList{}
			x.Put(translated(w))
		} else if a.Workload != nil {
			for key := range a.Workload.services {
				if ns, host, ok := strings.Cut(key, "/"); ok && host != "" {
					s := aService(host, 1, nil)
					s.GetService().Namespace = ns
					x.Put(translated(s))
				}
			}
		}
		x.Flush()
		for one := range x.All() {
			checkAnnounced(t, one)
		}
		x.Unenforced(nil)
		x.Selection()
	})
}

func invalid(v mesh.Verdict) bool { return v.Class == mesh.Invalid }

// checkAnnounced: what the model promises.
func checkAnnounced(t *testing.T, a *mesh.Announced) {
	t.Helper()
	if len(a.Service.Frontends) == 0 || len(a.Clusters) == 0 || len(a.Clusters) != len(a.Service.Clusters) || len(a.Clusters) > maxWaypoints {
		t.Fatalf("%+v", a.Service)
	}
	v4 := a.Service.Frontends[0].Prefix.Addr().Is4()
	for _, f := range a.Service.Frontends {
		if !f.Prefix.IsValid() || f.Prefix != f.Prefix.Masked() || f.Prefix.Addr().Is4In6() && f.Prefix.Bits() >= 96 || f.Port == 0 || f.Protocol != mesh.TCP || f.Prefix.Addr().Is4() != v4 {
			t.Fatalf("frontend %+v", f)
		}
	}
	var sum uint64
	for i, w := range a.Service.Clusters {
		c := a.Clusters[i]
		if sum += uint64(w.Weight); c.Name != w.Cluster || w.Weight == 0 || !strings.HasPrefix(c.Name, Prefix) {
			t.Fatalf("cluster %+v", w)
		}
		seen := map[netip.AddrPort]bool{}
		for _, l := range c.Localities {
			var weights uint64
			for _, e := range l.Endpoints {
				if weights += uint64(e.Weight); !e.Addr.IsValid() || e.Addr.Port() == 0 || e.Weight == 0 || e.Addr.Addr().Is4() != v4 || seen[e.Addr] {
					t.Fatalf("endpoint %+v of %s", e, c.Name)
				}
				seen[e.Addr] = true
			}
			if weights > 1<<32-1 {
				t.Fatalf("weights of %d", weights)
			}
		}
	}
	if sum == 0 || sum > 1<<32-1 {
		t.Fatalf("weights of %d", sum)
	}
}

// TestFit: weights that are too much for one number keep their proportions.
func TestFit(t *testing.T) {
	list := []mesh.Endpoint{{Weight: 1 << 31}, {Weight: 1 << 31}, {Weight: 1 << 30}, {Weight: 1}}
	fit(list)
	var got []uint32
	for _, e := range list {
		got = append(got, e.Weight)
	}
	if want := []uint32{1 << 29, 1 << 29, 1 << 28, 1}; !slices.Equal(got, want) {
		t.Errorf("weights %v, want %v", got, want)
	}
}
