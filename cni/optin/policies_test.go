// SPDX-License-Identifier: Apache-2.0

package optin

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var policies = Policies{
	Everywhere: []string{"root/lock"},
	Namespaces: map[string][]string{"shop": {"shop/deny"}},
	Some:       map[string][]string{"bank": {"bank/a", "bank/b"}},
}

// Policies keep out whom they select, as far as the plugin can tell, and nobody who did not opt in; and nobody's creation fails for them.
func TestDecideWithPolicies(t *testing.T) {
	yes, no := map[string]string{AnnotationEnroll: "true"}, map[string]string{AnnotationEnroll: "false"}
	with := func(p Policies) Set {
		return Set{Namespaces: map[string]Mode{"shop": Enroll, "bank": Required, "till": Enroll}, ControlPlane: []string{"mesh"}, Policies: p}
	}
	ofSome := Policies{Namespaces: policies.Namespaces, Some: policies.Some}
	for _, c := range []struct {
		name, namespace string
		annotations     map[string]string
		set             Set
		enroll          bool
		policies        []string
		says            string
	}{
		{"everywhere", "till", nil, with(policies), false, []string{"root/lock"}, "root/lock"},
		{"everywhere, by annotation", "x", yes, with(policies), false, []string{"root/lock"}, "root/lock"},
		{"everywhere, opted out", "till", no, with(policies), false, nil, AnnotationEnroll},
		{"everywhere, did not opt in", "x", nil, with(policies), false, nil, "neither"},
		{"everywhere, the control plane's", "mesh", yes, with(policies), false, nil, "control plane"},
		{"everywhere, a sidecar's", "shop", map[string]string{annotationSidecar: ""}, with(policies), false, nil, annotationSidecar},
		{"everywhere and the namespace", "shop", nil, with(policies), false, []string{"root/lock", "shop/deny"}, "root/lock, shop/deny"},
		{"the namespace", "shop", nil, with(ofSome), false, []string{"shop/deny"}, "does not enforce select it: shop/deny"},
		{"some, required", "bank", no, with(ofSome), false, []string{"bank/a", "bank/b"}, "kmesh-helper enrols it unless"},
		{"another namespace", "till", nil, with(ofSome), true, nil, "opted in"},
		{"none", "shop", nil, with(Policies{}), true, nil, "opted in"},
		{"on-unready that cannot be obeyed", "shop", map[string]string{AnnotationOnUnready: "maybe"}, with(ofSome), false, []string{"shop/deny"}, "shop/deny"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Decide(c.namespace, c.annotations, c.set)
			if err != nil || d.Enroll != c.enroll || d.PassWhenUnready || !slices.Equal(d.Policies, c.policies) || !strings.Contains(d.Reason, c.says) {
				t.Errorf("got %+v, %v", d, err)
			}
		})
	}
	// What the pod itself says wrong is its own fault still.
	var own *AnnotationError
	if _, err := Decide("shop", map[string]string{AnnotationEnroll: "yes"}, with(policies)); !errors.As(err, &own) {
		t.Errorf("error is %v", err)
	}
}

// The file of a set without policies is the one that there was before there were any; and whoever knows of none reads the rest of one with.
func TestOlderAndNewerPlugins(t *testing.T) {
	dir := t.TempDir()
	read := func(s Set) map[string]any {
		t.Helper()
		if err := Write(dir, s); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(Path(dir))
		if err != nil {
			t.Fatal(err)
		}
		var out map[string]any
		if err := json.Unmarshal(data, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	plain, with := read(set), read(Set{Namespaces: set.Namespaces, ControlPlane: set.ControlPlane, Policies: policies})
	if _, ok := with["policies"]; !ok {
		t.Errorf("the file is %v", with)
	}
	delete(with, "policies")
	if !reflect.DeepEqual(plain, with) {
		t.Errorf("without policies the file is %v, with them the rest of it is %v", plain, with)
	}
	// What a newer helper may write beside.
	s, err := Parse([]byte(`{"version":1,"namespaces":{"in":"enroll"},"more":{"x":1},"policies":{"some":{"in":["in/a"]},"never":["x"]}}`))
	want := Set{Namespaces: map[string]Mode{"in": Enroll}, Policies: Policies{Some: map[string][]string{"in": {"in/a"}}}}
	if err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("read %+v, %v", s, err)
	}
}

func TestPoliciesWhole(t *testing.T) {
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("shop/p%02d", 99-i))
	}
	p := Policies{Everywhere: []string{"b", "", "a", "b"}, Namespaces: map[string][]string{"shop": many, "": {"x"}, "none": {""}}, Some: map[string][]string{"shop": {"shop/s"}}}
	before := maps.Clone(p.Namespaces)
	want := Policies{Everywhere: []string{"a", "b"}, Namespaces: map[string][]string{"shop": {"shop/p00", "shop/p01", "shop/p02"}}}
	if got := p.Whole(); !reflect.DeepEqual(got, want) || !reflect.DeepEqual(p.Namespaces, before) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := (Policies{}).Whole(); !reflect.DeepEqual(got, Policies{}) {
		t.Errorf("none is %+v", got)
	}
	and := Policies{Everywhere: []string{"a"}}.And(Policies{Everywhere: []string{"b"}, Namespaces: map[string][]string{"shop": {"s"}}, Some: map[string][]string{"shop": {"t"}, "bank": {"u"}}})
	if want := (Policies{Everywhere: []string{"a", "b"}, Namespaces: map[string][]string{"shop": {"s"}}, Some: map[string][]string{"bank": {"u"}}}); !reflect.DeepEqual(and, want) {
		t.Errorf("both are %+v", and)
	}
}
