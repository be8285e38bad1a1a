// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"kmesh/cni/optin"
)

func TestNext(t *testing.T) {
	yes := map[string]string{optin.AnnotationEnroll: "true"}
	no := map[string]string{optin.AnnotationEnroll: "false"}
	bad := map[string]string{optin.AnnotationEnroll: "yes"}
	namespaces := Namespaces{"plain": "", "shop": optin.Enroll, "bank": optin.Required, "kube-system": optin.Enroll, "mesh": optin.Enroll}
	own := []string{"mesh"}
	addrs := []netip.Addr{netip.MustParseAddr("10.244.0.7")}
	out, in, draining := State{}, State{Enrolled: true}, State{Enrolled: true, Draining: true}

	tests := []struct {
		name        string
		namespace   string
		annotations map[string]string
		change      func(*Pod)
		state       State
		want        Action
		reason      string // part of it
	}{
		{"says nothing", "plain", nil, nil, out, Nothing, ""},
		{"says yes, is not enrolled", "plain", yes, nil, out, Enroll, "annotation"},
		{"says yes, is enrolled", "plain", yes, nil, in, Nothing, ""},
		{"says yes, drains", "plain", yes, nil, draining, Resume, "annotation"},
		{"says no, is enrolled", "plain", no, nil, in, Drain, "annotation"},
		{"says nothing any more, is enrolled", "plain", nil, nil, in, Drain, "neither"},
		{"says no, drains", "plain", no, nil, draining, Finish, "annotation"},
		{"namespace says yes", "shop", nil, nil, out, Enroll, "namespace shop"},
		{"namespace says yes, pod no", "shop", no, nil, out, Nothing, ""},
		{"namespace says yes, pod no, is enrolled", "shop", no, nil, in, Drain, "annotation"},
		{"namespace requires it, pod says no", "bank", no, nil, out, Enroll, "requires"},
		{"namespace requires it, pod says no, is enrolled", "bank", no, nil, in, Nothing, ""},
		{"namespace requires it, drains", "bank", no, nil, draining, Resume, "requires"},
		{"cannot be obeyed", "plain", bad, nil, out, Refuse, `"yes"`},
		{"cannot be obeyed, is enrolled", "plain", bad, nil, in, Refuse, `"yes"`},
		{"cannot be obeyed, drains", "plain", bad, nil, draining, Refuse, `"yes"`},
		{"namespace is not known", "new", yes, nil, out, Nothing, ""},
		{"namespace is not known, is enrolled", "new", no, nil, in, Nothing, ""},
		{"control plane's namespace", "kube-system", yes, nil, out, Nothing, ""},
		{"the helper's own namespace", "mesh", yes, nil, out, Nothing, ""},
		{"no address yet", "plain", yes, func(p *Pod) { p.Addrs = nil }, out, Nothing, ""},
		{"no address, opted out", "plain", no, func(p *Pod) { p.Addrs = nil }, in, Drain, "annotation"},
		{"ends", "plain", yes, func(p *Pod) { p.Ending = true }, out, Nothing, ""},
		{"ends, opted out", "plain", no, func(p *Pod) { p.Ending = true }, in, Nothing, ""},
		{"node's network", "plain", yes, func(p *Pod) { p.HostNetwork = true }, out, Refuse, "hostNetwork"},
		{"node's network, does not ask", "plain", nil, func(p *Pod) { p.HostNetwork = true }, out, Nothing, ""},
		{"another mesh's", "shop", map[string]string{"sidecar.istio.io/status": "{}"}, nil, out, Nothing, ""},
		{"another mesh's, required", "bank", map[string]string{"sidecar.istio.io/status": "{}"}, nil, out, Nothing, ""},
		{"another mesh's, required, is enrolled", "bank", map[string]string{"sidecar.istio.io/status": "{}"}, nil, in, Refuse, "requires"},
		{"another mesh's, required, drains", "bank", map[string]string{"sidecar.istio.io/status": "{}"}, nil, draining, Finish, "another data plane"},
		{"another mesh's, is enrolled", "shop", map[string]string{"sidecar.istio.io/status": "{}"}, nil, in, Drain, "another data plane"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := Pod{UID: "u", Namespace: tt.namespace, Name: "p", Annotations: tt.annotations, Addrs: addrs}
			if tt.change != nil {
				tt.change(&p)
			}
			got := Next(p, namespaces, own, tt.state)
			if got.Action != tt.want || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("%v (%q), want %v with %q", got.Action, got.Reason, tt.want, tt.reason)
			}
			if (got.Action == Nothing) != (got.Reason == "") {
				t.Errorf("%v has reason %q", got.Action, got.Reason)
			}
		})
	}
}

// What is done must lead to a state in which nothing is to be done: otherwise a pod
// would go to and fro for ever.
func TestNextComesToRest(t *testing.T) {
	after := func(st State, a Action) State {
		switch a {
		case Enroll, Resume:
			return State{Enrolled: true}
		case Drain:
			return State{Enrolled: true, Draining: true}
		case Finish:
			return State{}
		}
		return st
	}
	for _, mode := range []optin.Mode{"", optin.Enroll, optin.Required} {
		for _, value := range []string{"", "true", "false", "yes"} {
			for _, host := range []bool{false, true} {
				for _, st := range []State{{}, {Enrolled: true}, {Enrolled: true, Draining: true}} {
					p := Pod{Namespace: "n", HostNetwork: host, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
					if value != "" {
						p.Annotations = map[string]string{optin.AnnotationEnroll: value}
					}
					now := st
					var steps []Action
					for {
						next := Next(p, Namespaces{"n": mode}, nil, now)
						if next.Action == Nothing || next.Action == Refuse {
							break
						}
						steps = append(steps, next.Action)
						if len(steps) > 2 {
							t.Fatalf("namespace %q, pod %q, from %+v: %v and no end", mode, value, st, steps)
						}
						now = after(now, next.Action)
					}
				}
			}
		}
	}
}

func TestSet(t *testing.T) {
	got := Namespaces{"a": "", "b": optin.Enroll, "c": optin.Required}.Set([]string{"mesh"})
	want := optin.Set{Namespaces: map[string]optin.Mode{"b": optin.Enroll, "c": optin.Required}, ControlPlane: []string{"mesh"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
