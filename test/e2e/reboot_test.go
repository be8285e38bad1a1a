// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
)

// notReady is what the plugin says of a node without programs, and the kubelet repeats in the pod's event.
const notReady = "kmesh is not loaded on this node"

// rebooted is how many pods of each kind are on the node that reboots.
const rebooted = 5

// A node loses power. The pods that did not opt in start as if there were no Kmesh; those that did wait until they can
// be governed, and say so.
func TestReboot(t *testing.T) {
	b := newBed(t)
	servers := b.servers()
	b.install(b.mesh(servers[0].Status.PodIP, servers[1].Status.PodIP))
	var in, out []*core.Pod
	for i := range rebooted {
		in = append(in, b.create(b.spec(fmt.Sprintf("in-%d", i), enrolled())))
		out = append(out, b.create(b.spec(fmt.Sprintf("out-%d", i), nil)))
	}
	in, out = b.waitReady(in...), b.waitReady(out...)
	b.checkTraffic(in[0], out[0])

	b.stopKmesh() // so that it is not there after the reboot before we have looked
	began := time.Now()
	if err := b.n.Reboot(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.Logf("the node is Ready %s after it lost power", time.Since(began).Round(10*time.Millisecond))
	out, servers = b.waitRestarted(began, out...), b.waitRestarted(began, servers...)
	b.Logf("%d pods that did not opt in run again %s after that", len(out)+len(servers), time.Since(began).Round(10*time.Millisecond))
	for _, p := range out {
		if err := b.untouched(p); err != nil {
			t.Error(err)
		}
	}
	for _, p := range in {
		b.waitRefused(p, began)
	}

	b.setMesh(b.mesh(servers[0].Status.PodIP, servers[1].Status.PodIP))
	b.startKmesh()
	started := time.Now()
	in = b.waitRestarted(began, in...)
	b.Logf("%d pods that opted in run %s after the helper was ready", len(in), time.Since(started).Round(10*time.Millisecond))
	for _, p := range in {
		if err := b.governed(p); err != nil {
			t.Error(err)
		}
	}
	b.checkTraffic(in[0], out[0])
	b.n.RecordPins()
	b.delete(slices.Concat(in, out, servers)...)
	b.uninstall()
	b.until(podsLimit, "deleted pods left something", b.gone)
}

// waitRestarted waits until all are Ready with containers that began after a moment.
func (b *bed) waitRestarted(since time.Time, pods ...*core.Pod) []*core.Pod {
	b.Helper()
	now := make([]*core.Pod, len(pods))
	b.until(podsLimit, "pods did not run again", func() error {
		all, err := b.list()
		if err != nil {
			return err
		}
		var not []error
		for i, p := range pods {
			now[i] = all[p.UID]
			if now[i] == nil || !ready(now[i]) || !runsSince(now[i], since) {
				not = append(not, fmt.Errorf("%s: %s", p.Name, strings.Join(b.events(p), " | ")))
			}
		}
		return errors.Join(not...)
	})
	return now
}

// runsSince: are the pod's containers, and its network, of a time after this one? Times there have whole seconds.
func runsSince(p *core.Pod, since time.Time) bool {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Running == nil || c.State.Running.StartedAt.Time.Before(since.Truncate(time.Second)) {
			return false
		}
	}
	return len(p.Status.ContainerStatuses) > 0
}

// waitRefused waits for the event that says why the pod does not start, and asks whether it really does not.
func (b *bed) waitRefused(p *core.Pod, since time.Time) {
	b.Helper()
	b.until(podsLimit, "pod "+p.Name+" got no event that says why it waits", func() error {
		events := b.events(p)
		if !slices.ContainsFunc(events, func(e string) bool {
			return strings.HasPrefix(e, "FailedCreatePodSandBox: ") && strings.Contains(e, notReady)
		}) {
			return fmt.Errorf("it has %q", events)
		}
		return nil
	})
	if now := b.get(p); runsSince(now, since) {
		b.Errorf("pod %s runs on a node that cannot govern it: %+v", p.Name, now.Status)
	}
	if n := b.programsOn(p); n > 0 {
		b.Errorf("pod %s waits and has %d programs on its cgroup", p.Name, n)
	}
}
