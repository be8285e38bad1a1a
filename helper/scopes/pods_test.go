// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"reflect"
	"testing"

	"kmesh/cni/optin"
	"kmesh/helper/mesh"
	"kmesh/helper/pods/plan"
	"kmesh/netns"
)

func TestPodsOf(t *testing.T) {
	yes := map[string]string{optin.AnnotationEnroll: "true"}
	known := func(uid, name string, space uint64, scope uint32, ready, draining bool) netns.Known {
		return netns.Known{Request: netns.Request{UID: uid, Namespace: "shop", Name: name}, NetnsCookie: space, Scope: scope, Ready: ready, Draining: draining}
	}
	view := &plan.View{
		Namespaces: plan.Namespaces{"shop": "", "system": ""},
		Pods: []plan.Pod{
			{UID: "1", Namespace: "shop", Name: "web", Annotations: yes, Labels: map[string]string{"app": "web", "pod-template-hash": "x"}, ServiceAccount: "seller"},
			{UID: "2", Namespace: "shop", Name: "coming", Annotations: yes},
			{UID: "3", Namespace: "shop", Name: "silent"},
			{UID: "4", Namespace: "shop", Name: "draining"},
			{UID: "5", Namespace: "shop", Name: "going", Annotations: yes, Ending: true},
			{UID: "6", Namespace: "system", Name: "ours", Annotations: yes},
			{UID: "7", Namespace: "shop", Name: "node", Annotations: yes, HostNetwork: true},
		},
	}
	all := []netns.Known{
		known("1", "web", 11, 5, true, false), known("1", "web", 12, 0, true, false),
		known("4", "draining", 14, 0xffffffff, true, true),
		known("5", "going", 15, 6, true, false),
		known("8", "unheard", 18, 7, true, false), known("", "", 19, 8, true, false),
		known("9", "unfinished", 20, 0, false, false),
	}
	web := mesh.ScopeKey{Namespace: "shop", ServiceAccount: "seller", Labels: "app=web"}
	plain := mesh.ScopeKey{Namespace: "shop", ServiceAccount: "default"}
	tests := map[string]struct {
		view *plan.View
		want []Pod
	}{
		"all is known": {view, []Pod{
			{Namespace: "shop", Name: "web", Scope: web, Spaces: map[uint64]uint32{11: 5, 12: 0}},
			{Namespace: "shop", Name: "coming", Scope: plain},
			{Namespace: "shop", Name: "going", Scope: plain, Spaces: map[uint64]uint32{15: 6}},
			{Namespace: "shop", Name: "unheard", Unknown: true, Spaces: map[uint64]uint32{18: 7}},
			{Namespace: "shop", Unknown: true, Spaces: map[uint64]uint32{19: 8}},
		}},
		"the API server has not spoken": {nil, []Pod{
			{Namespace: "shop", Name: "web", Unknown: true, Spaces: map[uint64]uint32{11: 5}},
			{Namespace: "shop", Name: "web", Unknown: true, Spaces: map[uint64]uint32{12: 0}},
			{Namespace: "shop", Name: "going", Unknown: true, Spaces: map[uint64]uint32{15: 6}},
			{Namespace: "shop", Name: "unheard", Unknown: true, Spaces: map[uint64]uint32{18: 7}},
			{Namespace: "shop", Unknown: true, Spaces: map[uint64]uint32{19: 8}},
		}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := PodsOf(all, tc.view, []string{"system"}); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestKeyOf(t *testing.T) {
	k := KeyOf("shop", "", map[string]string{"tier": "gold", "app": "web", "controller-uid": "u", "pod-template-hash": "h", "empty": ""})
	if want := (mesh.ScopeKey{Namespace: "shop", ServiceAccount: "default", Labels: "app=web,empty=,tier=gold"}); k != want {
		t.Errorf("%+v, want %+v", k, want)
	}
	if got := LabelsOf(k); !reflect.DeepEqual(got, map[string]string{"app": "web", "empty": "", "tier": "gold"}) {
		t.Errorf("labels %v", got)
	}
	if got := LabelsOf(mesh.ScopeKey{Namespace: "shop"}); got != nil {
		t.Errorf("labels of none are %v", got)
	}
}

// Those that are open keep their place, the rest share their namespace's.
func TestLimit(t *testing.T) {
	key := func(ns, sa string) mesh.ScopeKey { return mesh.ScopeKey{Namespace: ns, ServiceAccount: sa} }
	wanted := map[mesh.ScopeKey]bool{key("a", "1"): true, key("a", "2"): true, key("b", "1"): true, key("c", "1"): true}
	open := func(k mesh.ScopeKey) bool { return k.Namespace == "c" || k == key("a", "2") }
	get, shared := limit(wanted, open, 3)
	want := map[mesh.ScopeKey]mesh.ScopeKey{key("a", "1"): key("a", "1"), key("a", "2"): key("a", "2"), key("b", "1"): {Namespace: "b"}, key("c", "1"): key("c", "1")}
	if shared != 1 || !reflect.DeepEqual(get, want) {
		t.Errorf("%d shared, %v", shared, get)
	}
	if get, shared := limit(wanted, open, 4); shared != 0 || get[key("b", "1")] != key("b", "1") {
		t.Errorf("with room for all %d are shared: %v", shared, get)
	}
}

// An account is a pod's that is known, or that of a scope which a pod has of which nothing
// else is known; the scope of a whole namespace is nobody's.
func TestAccounts(t *testing.T) {
	has := map[mesh.ScopeKey]bool{{Namespace: "b", ServiceAccount: "y", Labels: "k=v"}: true, {Namespace: "c"}: true}
	known := []Pod{
		{Scope: mesh.ScopeKey{Namespace: "a", ServiceAccount: "z"}}, {Scope: mesh.ScopeKey{Namespace: "a", ServiceAccount: "x", Labels: "k=v"}},
		{Scope: mesh.ScopeKey{Namespace: "a", ServiceAccount: "x"}},
	}
	if got, want := accounts(known, has), (map[string][]string{"a": {"x", "z"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := accounts(append(known, Pod{Unknown: true}), has), (map[string][]string{"a": {"x", "z"}, "b": {"y"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("with one of which nothing is known: %v, want %v", got, want)
	}
}

func TestState(t *testing.T) {
	dir := t.TempDir()
	if keys, err := loadKeys(dir); keys != nil || err != nil {
		t.Errorf("nothing there: %v, %v", keys, err)
	}
	want := []mesh.ScopeKey{{Namespace: "a", ServiceAccount: "s", Labels: "x=y,z="}, {Namespace: "b"}}
	if err := saveKeys(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := loadKeys(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}
