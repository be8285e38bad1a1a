// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kmesh/cni/optin"
)

// Pods that run when Kmesh comes to a node: those that ask are governed without a restart, the others stay as they are.
func TestLateEnrolment(t *testing.T) {
	b := newBed(t)
	servers := b.servers()
	host := b.spec("on-host", enrolled())
	host.Spec.HostNetwork = true
	host.Spec.Containers[0].Args, host.Spec.Containers[0].StartupProbe = nil, nil // the host's ports are not its
	pods := b.waitReady(b.create(b.spec("asks", enrolled())), b.create(b.spec("silent", nil)), b.create(host))
	asks, silent, onHost := pods[0], pods[1], pods[2]
	for _, p := range pods[:2] {
		if k, err := b.kernel(p); err != nil || len(k.at) > 0 {
			t.Fatalf("pod %s before Kmesh: %+v (%v), want no programs", p.Name, k, err)
		}
	}

	b.install(b.mesh(servers[0].Status.PodIP, servers[1].Status.PodIP))
	began := time.Now()
	b.until(podsLimit, "the pod that asks was not governed", func() error { return b.governed(asks) })
	b.Logf("a pod that ran before is governed %s after Kmesh was ready", time.Since(began).Round(10*time.Millisecond))
	b.waitEvent(asks, "EnrolledLate")
	b.waitEvent(onHost, "NotGoverned")
	if n := b.get(asks).Status.ContainerStatuses[0].RestartCount; n > 0 {
		t.Errorf("it was restarted %d times for that", n)
	}
	b.checkTraffic(asks, silent)
	if err := b.untouched(silent); err != nil {
		t.Error(err)
	}
	if events := b.events(silent); slices.ContainsFunc(events, func(e string) bool { return strings.Contains(e, "kmesh") }) {
		t.Errorf("the pod that does not ask has events of ours: %q", events)
	}

	byNamespace := b.namespaceOptIn()
	b.n.RecordPins()
	b.delete(append(pods, byNamespace, servers[0], servers[1])...)
	b.uninstall()
	b.until(podsLimit, "deleted pods left something", b.gone)
}

// namespaceOptIn labels a namespace, and makes a pod in it that says nothing itself.
func (b *bed) namespaceOptIn() *core.Pod {
	b.Helper()
	const name = "shop"
	if err := b.n.EnsureNamespace(b.ctx, name); err != nil {
		b.Fatal(err)
	}
	v1 := b.n.Client.CoreV1().Namespaces()
	ns, err := v1.Get(b.ctx, name, meta.GetOptions{})
	if err != nil {
		b.Fatal(err)
	}
	ns.Labels[optin.LabelMode] = "kmesh"
	if _, err := v1.Update(b.ctx, ns, meta.UpdateOptions{}); err != nil {
		b.Fatal(err)
	}
	// The plugin asks no API server: it reads what the helper wrote.
	b.until(podsLimit, "the namespace's label did not reach the node", func() error {
		set, err := optin.Read(b.n.StateDir)
		if err == nil && set.Namespaces[name] != optin.Enroll {
			err = fmt.Errorf("the set on disk is %+v", set)
		}
		return err
	})
	spec := b.spec("by-namespace", nil)
	spec.Namespace = name
	p := b.waitReady(b.create(spec))[0]
	if err := b.governed(p); err != nil {
		b.Error(err)
	}
	return p
}

// waitEvent waits until a pod has an event of this reason.
func (b *bed) waitEvent(p *core.Pod, reason string) {
	b.Helper()
	b.until(podsLimit, "pod "+p.Name+" got no event "+reason, func() error {
		events := b.events(p)
		if !slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, reason+": ") }) {
			return fmt.Errorf("it has %q", events)
		}
		return nil
	})
}
