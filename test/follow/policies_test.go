// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kmesh/cni/optin"
	"kmesh/helper/mesh"
	"kmesh/helper/pods"
	"kmesh/helper/pods/plan"
	"kmesh/helper/scopes"
	"kmesh/helper/snapshot"
	"kmesh/helper/translate/workload"
	"kmesh/helper/translate/workload/address"
	"kmesh/helper/translate/workload/policy"
	"kmesh/helper/xds"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// istio is what a control plane says by the workload API, and a keeper that refuses to enrol
// whom its policies select.
type istio struct {
	*bed
	store *snapshot.Workloads
	k     *keeper
	until time.Time
}

func newIstio(b *bed) *istio {
	return &istio{bed: b, store: snapshot.NewWorkloads(snapshot.WorkloadsOptions{Here: workload.Here{Node: nodeName}})}
}

// refuse starts the keeper.
func (i *istio) refuse() {
	i.Helper()
	from := scopes.Sources{API: i.store.Selection, Until: i.until, Inbound: func(mesh.ScopeKey) ([]string, bool) { return nil, false }}
	i.k = i.start(func(o *pods.Options) {
		o.Policies = i.store.PoliciesOf
		o.Barred = func(view plan.View) plan.Policies { return scopes.Barred(view, from) }
	})
	i.k.Poke()
}

func (i *istio) apply(updates ...xds.Update) {
	i.Helper()
	if err := i.store.Apply(context.Background(), updates...); err != nil {
		i.Fatal(err)
	}
	if i.k != nil {
		i.k.Poke()
	}
}

// speaks makes the API's first word one of no workload and no policy.
func (i *istio) speaks() {
	i.Helper()
	i.apply(xds.Update{Type: snapshot.AddressType, Complete: true}, xds.Update{Type: snapshot.AuthorizationType, Complete: true})
}

// tells of a pod, with the policies whose labels select it.
func (i *istio) tells(p *node.Pod, policies ...string) {
	i.Helper()
	w := &address.Workload{
		Uid: "k//Pod/" + p.Namespace + "/" + p.Name, Name: p.Name, Namespace: p.Namespace, Node: nodeName,
		Addresses: [][]byte{p.IP4.AsSlice(), p.IP6.AsSlice()}, AuthorizationPolicies: policies,
	}
	i.apply(xds.Update{Type: snapshot.AddressType, Resources: []xds.Resource{{
		Name: w.Uid, Version: time.Now().String(), Hash: hash(), Message: &address.Address{Type: &address.Address_Workload{Workload: w}},
	}}})
}

func (i *istio) policy(namespace, name string, scope policy.Scope) {
	i.Helper()
	a := &policy.Authorization{Namespace: namespace, Name: name, Scope: scope, Action: policy.Action_DENY}
	i.apply(xds.Update{Type: snapshot.AuthorizationType, Resources: []xds.Resource{{Name: namespace + "/" + name, Hash: hash(), Message: a}}})
}

func (i *istio) without(name string) {
	i.Helper()
	i.apply(xds.Update{Type: snapshot.AuthorizationType, Removed: []string{name}})
}

var hashes atomic.Uint32

// hash is another one each time.
func hash() (h [32]byte) {
	n := hashes.Add(1)
	h[0], h[1] = byte(n), byte(n>>8)
	return h
}

// onDisk waits for the policies that the plugin is given.
func (i *istio) onDisk(want optin.Policies) {
	i.Helper()
	i.eventually("policies on disk", func() error {
		s, err := optin.Read(i.node.StateDir)
		if err == nil && !s.Policies.Equal(want) {
			return fmt.Errorf("they are %+v, want %+v", s.Policies, want)
		}
		return err
	})
}

func (i *istio) unlinked(p *node.Pod) {
	i.Helper()
	i.eventually("links of pod "+p.Name, func() error {
		if i.links(p) != 0 {
			return errNotYet
		}
		return nil
	})
}

// A policy that comes lets an enrolled pod go, as its own word would: what is open goes on
// governed. Pods that are made meanwhile are not enrolled, and all are when it is gone.
func TestPolicyKeepsPodsOut(t *testing.T) {
	i := newIstio(newBed(t, node.Options{}))
	i.speaks()
	in := i.pod(node.PodSpec{Name: "in", Annotations: node.Enrolled()})
	silent := i.plainPod("silent")
	i.tell(apiPod(in, in.Annotations))
	i.tell(apiPod(silent, nil))
	i.tells(in)
	i.refuse()
	i.onDisk(optin.Policies{})
	kept, err := in.Dial(i.ctx, wire.Dial{Network: wire.TCP, Addr: echoVIP, Keep: true})
	if err != nil || kept.Server != "echo" {
		t.Fatalf("%+v, %v", kept, err)
	}

	i.policy("default", "lock", policy.Scope_NAMESPACE)
	// First the event: to see whether a pod is governed takes a connection more.
	if e := i.event(in, pods.Draining); !strings.Contains(e.Message, "does not enforce select it: default/lock") || !strings.HasSuffix(e.Message, ": 1") {
		t.Errorf("event says %q", e.Message)
	}
	i.governed(in, false)
	i.onDisk(optin.Policies{Namespaces: map[string][]string{"default": {"default/lock"}}})
	i.planned(i.k, in, "open: 1")
	for range 3 {
		if res, err := in.Exchange(i.ctx, wire.Exchange{Handle: kept.Handle}); err != nil || res.Server != "echo" || res.Peer != echoVIP {
			t.Errorf("the open connection answers %+v, %v", res, err)
		}
	}
	// By the plugin.
	fresh := i.pod(node.PodSpec{Name: "fresh", Annotations: node.Enrolled()})
	if n := i.links(fresh); n != 0 || i.reaches(fresh) {
		t.Errorf("a pod that is made while the policy is there has %d links", n)
	}
	i.tell(apiPod(fresh, fresh.Annotations))
	i.tells(fresh)
	i.planned(i.k, fresh, "is not enrolled: policies that Kmesh does not enforce select it: default/lock")
	if e := i.event(fresh, pods.NotEnforced); e.Type != "Warning" || !strings.Contains(e.Message, "default/lock") || !strings.Contains(e.Message, "Take the policies away") {
		t.Errorf("event %s %q", e.Type, e.Message)
	}
	for _, p := range i.k.Plans() {
		if len(p.Policies) != 1 || p.Policies[0] != "default/lock" {
			t.Errorf("plan %+v: want its policy", p)
		}
	}

	if err := in.Hangup(i.ctx, kept.Handle); err != nil {
		t.Fatal(err)
	}
	i.unlinked(in)
	i.event(in, pods.Released)
	i.event(in, pods.NotEnforced)

	i.without("default/lock")
	i.governed(in, true)
	i.governed(fresh, true)
	i.event(fresh, pods.EnrolledLate)
	i.onDisk(optin.Policies{})
	if n := len(i.k.Plans()); n != 0 {
		t.Errorf("plans %+v", i.k.Plans())
	}
	if i.links(silent) != 0 || len(i.events(silent)) != 0 {
		t.Errorf("the pod that did not ask has %d links, %d events", i.links(silent), len(i.events(silent)))
	}
}

// A policy that selects by labels leaves the pods of its namespace to the helper, which enrols
// those that it does not select as soon as the control plane has told of them.
func TestPolicyByLabels(t *testing.T) {
	i := newIstio(newBed(t, node.Options{}))
	i.speaks()
	i.policy("default", "some", policy.Scope_WORKLOAD_SELECTOR)
	i.policy("elsewhere", "lock", policy.Scope_NAMESPACE)
	i.refuse()
	i.onDisk(optin.Policies{Some: map[string][]string{"default": {"default/some"}}, Namespaces: map[string][]string{"elsewhere": {"elsewhere/lock"}}})
	chosen, other := i.pod(node.PodSpec{Name: "chosen", Annotations: node.Enrolled()}), i.pod(node.PodSpec{Name: "other", Annotations: node.Enrolled()})
	for _, p := range []*node.Pod{chosen, other} {
		if n := i.links(p); n != 0 {
			t.Errorf("pod %s has %d links, and nobody knows whether the policy selects it", p.Name, n)
		}
		i.tell(apiPod(p, p.Annotations))
		i.planned(i.k, p, "is not enrolled yet: the control plane has not said")
	}
	i.tells(other)
	i.governed(other, true)
	i.tells(chosen, "default/some")
	i.event(chosen, pods.NotEnforced)
	if i.links(chosen) != 0 {
		t.Error("the pod that is selected is enrolled")
	}
	// Its labels are others now, and the other one's.
	i.tells(chosen)
	i.governed(chosen, true)
	i.tells(other, "default/some")
	i.unlinked(other)
	i.event(other, pods.Released)
}

// The last known policies hold while the control plane has not spoken, whatever becomes of the
// helper; pods that are enrolled stay, since nothing is known of them.
func TestPoliciesOutliveTheHelper(t *testing.T) {
	i := newIstio(newBed(t, node.Options{}))
	lock := optin.Policies{Namespaces: map[string][]string{"elsewhere": {"elsewhere/lock"}}, Some: map[string][]string{"default": {"default/some"}}}
	if err := optin.Write(i.node.StateDir, optin.Set{Policies: optin.Policies{}}); err != nil {
		t.Fatal(err)
	}
	in := i.pod(node.PodSpec{Name: "in", Annotations: node.Enrolled()})
	i.tell(apiPod(in, in.Annotations))
	if err := optin.Write(i.node.StateDir, optin.Set{Policies: lock}); err != nil {
		t.Fatal(err)
	}
	i.until = time.Now().Add(time.Hour)
	i.refuse()
	out := i.pod(node.PodSpec{Name: "out", Annotations: node.Enrolled()})
	i.tell(apiPod(out, out.Annotations))
	i.planned(i.k, out, "no word yet from the workload API")
	i.onDisk(lock)
	if i.links(out) != 0 || !i.reaches(in) {
		t.Errorf("governed: out by %d links, in %t; want them as they were", i.links(out), i.reaches(in))
	}
	i.k.stop()

	// It has been silent for too long for pods to wait: what is on disk holds still.
	i.until = time.Now()
	i.refuse()
	i.planned(i.k, out, "has not said yet whether policies select it")
	i.onDisk(lock)
	i.speaks()
	i.governed(out, true)
	i.onDisk(optin.Policies{})
	i.k.stop()

	// A set that is cut is written anew, and keeps nobody from anything meanwhile.
	if err := os.WriteFile(optin.Path(i.node.StateDir), []byte(`{"version":1,"policies":{"eve`), 0o600); err != nil {
		t.Fatal(err)
	}
	free := i.pod(node.PodSpec{Name: "free", Annotations: node.Enrolled()})
	if !i.reaches(free) {
		t.Error("a pod is not enrolled since the set is cut")
	}
	i.policy("default", "lock", policy.Scope_GLOBAL)
	i.refuse()
	i.onDisk(optin.Policies{Everywhere: []string{"default/lock"}})
	if !strings.Contains(i.log.String(), "cannot be read, and is written anew") {
		t.Error("the log does not say that the set was unreadable")
	}
	i.governed(in, false)
}

// Without the setting the policies on disk go, and whom they kept out is enrolled.
func TestPoliciesReportedOnly(t *testing.T) {
	i := newIstio(newBed(t, node.Options{}))
	i.speaks()
	i.policy("default", "lock", policy.Scope_GLOBAL)
	i.refuse()
	i.onDisk(optin.Policies{Everywhere: []string{"default/lock"}})
	p := i.pod(node.PodSpec{Name: "client", Annotations: node.Enrolled()})
	i.tell(apiPod(p, p.Annotations))
	i.tells(p)
	i.event(p, pods.NotEnforced)
	i.k.stop()
	i.k = i.start(func(o *pods.Options) { o.Policies, o.Every = i.store.PoliciesOf, 50*time.Millisecond })
	i.governed(p, true)
	i.onDisk(optin.Policies{})
	i.eventually("the report", func() error {
		for _, e := range i.events(p) {
			if e.Reason == string(pods.NotEnforced) && strings.Contains(e.Message, "let through whatever these policies say: default/lock") {
				return nil
			}
		}
		return errors.New("there is none")
	})
}
