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
			got := Next(p, namespaces, own, nil, tt.state)
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
	all := []*Policies{
		nil, {}, {Policies: optin.Policies{Everywhere: []string{"root/lock"}}}, {Policies: optin.Policies{Some: map[string][]string{"n": {"n/some"}}}},
		{Pods: map[string]Selected{"": {Known: true, Policies: []string{"n/some"}}}}, {Last: true, Unknown: "no word yet"},
	}
	for i := range 3 * len(all) {
		mode, policies := []optin.Mode{"", optin.Enroll, optin.Required}[i%3], all[i/3]
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
						next := Next(p, Namespaces{"n": mode}, nil, policies, now)
						if next.Action == Nothing || next.Action == Refuse || next.Action == Bar || next.Action == Wait {
							break
						}
						steps = append(steps, next.Action)
						if len(steps) > 2 {
							t.Fatalf("namespace %q, pod %q, policies %+v, from %+v: %v and no end", mode, value, policies, st, steps)
						}
						now = after(now, next.Action)
					}
				}
			}
		}
	}
}

func TestSet(t *testing.T) {
	got := Namespaces{"a": "", "b": optin.Enroll, "c": optin.Required}.Set([]string{"mesh"}, nil)
	want := optin.Set{Namespaces: map[string]optin.Mode{"b": optin.Enroll, "c": optin.Required}, ControlPlane: []string{"mesh"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	policies := &Policies{Policies: optin.Policies{Everywhere: []string{"root/b", "root/a", "root/a"}, Some: map[string][]string{"b": nil}}}
	want.Policies = optin.Policies{Everywhere: []string{"root/a", "root/b"}}
	if got := (Namespaces{"b": optin.Enroll, "c": optin.Required}).Set([]string{"mesh"}, policies); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestNextWithPolicies: policies that are not enforced keep out whom they select, and nobody
// else.
func TestNextWithPolicies(t *testing.T) {
	yes := map[string]string{optin.AnnotationEnroll: "true"}
	namespaces := Namespaces{"plain": "", "shop": optin.Enroll, "bank": optin.Required, "kube-system": optin.Enroll}
	addrs := []netip.Addr{netip.MustParseAddr("10.244.0.7")}
	out, in, draining := State{}, State{Enrolled: true}, State{Enrolled: true, Draining: true}
	pod := func(s Selected) map[string]Selected { return map[string]Selected{"u": s} }
	everywhere := &Policies{Policies: optin.Policies{Everywhere: []string{"root/lock"}}}
	ofShop := &Policies{Policies: optin.Policies{Namespaces: map[string][]string{"shop": {"shop/lock"}}}}
	some := optin.Policies{Some: map[string][]string{"shop": {"shop/some"}}}
	selected := &Policies{Policies: some, Pods: pod(Selected{true, []string{"shop/some"}})}
	other := &Policies{Policies: some, Pods: pod(Selected{Known: true})}
	strange := &Policies{Policies: some, Pods: pod(Selected{})}
	waits := &Policies{Last: true, Unknown: "no word yet"}
	away := &Policies{Last: true}

	tests := []struct {
		name        string
		namespace   string
		annotations map[string]string
		policies    *Policies
		change      func(*Pod)
		state       State
		want        Action
		reason      string
	}{
		{"mesh-wide", "shop", nil, everywhere, nil, out, Bar, "root/lock"},
		{"mesh-wide, by annotation", "plain", yes, everywhere, nil, out, Bar, "root/lock"},
		{"mesh-wide, does not ask", "plain", nil, everywhere, nil, out, Nothing, ""},
		{"mesh-wide, the control plane's", "kube-system", yes, everywhere, nil, out, Nothing, ""},
		{"mesh-wide, is enrolled", "shop", nil, everywhere, nil, in, Drain, "root/lock"},
		{"mesh-wide, drains", "shop", nil, everywhere, nil, draining, Finish, "root/lock"},
		{"mesh-wide, required", "bank", nil, everywhere, nil, in, Drain, "root/lock"},
		{"mesh-wide, required, is not enrolled", "bank", nil, everywhere, nil, out, Bar, "root/lock"},
		{"mesh-wide, no address yet", "shop", nil, everywhere, func(p *Pod) { p.Addrs = nil }, out, Nothing, ""},
		{"mesh-wide, ends", "shop", nil, everywhere, func(p *Pod) { p.Ending = true }, in, Nothing, ""},
		{"mesh-wide, node's network", "shop", nil, everywhere, func(p *Pod) { p.HostNetwork = true }, out, Refuse, "hostNetwork"},
		{"mesh-wide, cannot be obeyed", "shop", map[string]string{optin.AnnotationEnroll: "yes"}, everywhere, nil, in, Refuse, `"yes"`},
		{"of the namespace", "shop", nil, ofShop, nil, out, Bar, "shop/lock"},
		{"of another namespace", "bank", nil, ofShop, nil, out, Enroll, "requires"},
		{"of another namespace, is enrolled", "bank", nil, ofShop, nil, in, Nothing, ""},
		{"by labels", "shop", nil, selected, nil, out, Bar, "shop/some"},
		{"by labels, is enrolled", "shop", nil, selected, nil, in, Drain, "shop/some"},
		{"by labels, others", "shop", nil, other, nil, out, Enroll, "namespace shop"},
		{"by labels, others, is enrolled", "shop", nil, other, nil, in, Nothing, ""},
		{"by labels, others, drains", "shop", nil, other, nil, draining, Resume, "namespace shop"},
		{"by labels, not known yet", "shop", nil, strange, nil, out, Wait, "shop/some"},
		{"by labels, not known yet, is enrolled", "shop", nil, strange, nil, in, Nothing, ""},
		{"by labels, not known yet, drains", "shop", nil, strange, nil, draining, Nothing, ""},
		{"by labels, not known yet, does not ask", "plain", nil, strange, nil, out, Nothing, ""},
		{"by labels, not known yet, no address", "shop", nil, strange, func(p *Pod) { p.Addrs = nil }, out, Nothing, ""},
		{"by labels, another namespace", "bank", nil, strange, nil, out, Enroll, "requires"},
		{"nothing is known yet", "shop", nil, waits, nil, out, Wait, "no word yet"},
		{"nothing is known yet, is enrolled", "shop", nil, waits, nil, in, Nothing, ""},
		{"nothing is known yet, but of before", "shop", nil, &Policies{Policies: everywhere.Policies, Last: true, Unknown: "no word yet"}, nil, in, Drain, "root/lock"},
		{"the control plane is away", "shop", nil, away, nil, out, Enroll, "namespace shop"},
		{"none", "shop", nil, &Policies{}, nil, out, Enroll, "namespace shop"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := Pod{UID: "u", Namespace: tt.namespace, Name: "p", Annotations: tt.annotations, Addrs: addrs}
			if tt.change != nil {
				tt.change(&p)
			}
			got := Next(p, namespaces, nil, tt.policies, tt.state)
			if got.Action != tt.want || !strings.Contains(got.Reason, tt.reason) || (got.Action == Nothing) != (got.Reason == "") {
				t.Errorf("%v (%q), want %v with %q", got.Action, got.Reason, tt.want, tt.reason)
			}
			if barred := got.Action == Bar || got.Action == Drain || got.Action == Finish; barred != (len(got.Policies) > 0) {
				t.Errorf("%v for policies %q", got.Action, got.Policies)
			}
			// What the plugin does at its creation is no more: whom it enrols then, the helper
			// does not let go at once, unless it knows better.
			if tt.change != nil || tt.policies.Pods != nil {
				return
			}
			d, err := optin.Decide(tt.namespace, tt.annotations, namespaces.Set(nil, tt.policies))
			if next := Next(p, namespaces, nil, tt.policies, State{Enrolled: true}); err == nil && d.Enroll && next.Action != Nothing {
				t.Errorf("the plugin enrols it, and the helper: %v", next)
			}
			if err == nil && !d.Enroll && next(p, namespaces, tt.policies) == Enroll {
				t.Error("the plugin does not enrol it, and the helper does at once")
			}
		})
	}
}

func next(p Pod, namespaces Namespaces, policies *Policies) Action {
	return Next(p, namespaces, nil, policies, State{}).Action
}

// TestWith: what was known last holds while what is known now is not all.
func TestWith(t *testing.T) {
	last := optin.Policies{Everywhere: []string{"root/old"}, Namespaces: map[string][]string{"shop": {"shop/old"}}}
	now := Policies{Policies: optin.Policies{Everywhere: []string{"root/new"}}, Unknown: "no word yet"}
	if got := now.With(last); !got.Policies.Equal(now.Policies) {
		t.Errorf("all is known, and it is %+v", got.Policies)
	}
	now.Last = true
	want := optin.Policies{Everywhere: []string{"root/new", "root/old"}, Namespaces: last.Namespaces}
	if got := now.With(last); !got.Policies.Equal(want) || got.Unknown != now.Unknown {
		t.Errorf("%+v, want %+v", got, want)
	}
	if len(now.Everywhere) != 1 || len(last.Everywhere) != 1 {
		t.Error("what was given is changed")
	}
}
