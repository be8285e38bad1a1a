// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"testing"

	core "k8s.io/api/core/v1"
)

// Pods of both kinds come and go, twice, the second time while the helper dies.
func TestPodsComeAndGo(t *testing.T) {
	b := newBed(t)
	// The same without Kmesh, to compare with.
	before := b.crowd("before", nil)
	b.waitReady(before...)
	b.delete(before...)
	servers := b.servers()
	b.install(b.mesh(servers[0].Status.PodIP, servers[1].Status.PodIP))

	oneIn, oneOut := b.oneByOne()
	in, out := b.churn("first", nil)
	b.checkTraffic(in[0], out[0])
	b.checkConfined()
	b.checkShown(slices.Concat(in, oneIn))
	b.restartKubelet(in, out)
	b.delete(slices.Concat(in, out, oneIn, oneOut)...)

	in2, out2 := b.churn("second", func() { b.killHelper() })
	if n := b.restarts("helper"); n != 1 {
		t.Errorf("the helper was started again %d times, want once: it was killed once", n)
	}
	b.checkTraffic(in2[0], out2[0])
	b.reportAdds(
		kind{"one by one, opted in", oneIn}, kind{"one by one, not opted in", oneOut},
		kind{"40 at once, opted in", append(in, in2...)}, kind{"40 at once, not opted in", append(out, out2...)},
		kind{"40 at once, before Kmesh", before},
	)

	// Off the node, under those pods: the plugin leaves the chain at once, and the node when none of them is left.
	b.stopKmesh()
	b.checkTraffic(in2[0], out2[0])
	uninstall := b.uninstallPlugin()
	after := b.waitReady(b.create(b.spec("after", enrolled())))[0]
	if err := b.untouched(after); err != nil {
		t.Errorf("after the plugin left the chain: %v", err)
	}
	b.checkTraffic(in2[0], after)
	if now := b.get(uninstall); now.Status.Phase != core.PodRunning {
		t.Errorf("the uninstall is %s while pods are there that need the plugin at their end: %s", now.Status.Phase, b.log(now))
	}
	b.delete(slices.Concat(in2, out2, servers, []*core.Pod{after})...)
	b.finish(uninstall)
	b.uninstallHelper()
	b.checkAsBefore()
	b.until(podsLimit, "deleted pods left something", b.gone)
}

// restartKubelet kills the kubelet and starts it again: nothing happens to the pods.
func (b *bed) restartKubelet(in, out []*core.Pod) {
	b.Helper()
	if err := b.n.KillKubelet(); err != nil {
		b.Fatal(err)
	}
	if err := b.n.StartKubelet(b.ctx); err != nil {
		b.Fatal(err)
	}
	for i, p := range b.waitReady(slices.Concat(in, out)...) {
		if n := p.Status.ContainerStatuses[0].RestartCount; n > 0 {
			b.Errorf("pod %s was started again %d times because the kubelet was", p.Name, n)
		}
		check := b.governed
		if i >= len(in) {
			check = b.untouched
		}
		if err := check(p); err != nil {
			b.Error(err)
		}
	}
}

// restarts is how often a container of Kmesh's was started again.
func (b *bed) restarts(container string) int32 {
	b.Helper()
	for _, c := range b.get(b.kmesh.pod).Status.ContainerStatuses {
		if c.Name == container {
			return c.RestartCount
		}
	}
	b.Fatalf("pod %s has no status of container %s", b.kmesh.pod.Name, container)
	return 0
}
