// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kmesh/bpf"
	"kmesh/cni/optin"
	"kmesh/helper/pods"
	"kmesh/helper/pods/plan"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// Where the runtime's cache has lost a pod, its processes lead to its network namespace;
// where it has none, an event says what to do.
func TestFindsPodsWithoutTheCache(t *testing.T) {
	b := newBed(t, node.Options{NoKmesh: true})
	busy, idle := b.plainPod("busy"), b.plainPod("idle")
	if _, _, err := busy.Listen(b.ctx, wire.Listen{Network: wire.TCP, Addr: ":9", Name: "busy"}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*node.Pod{busy, idle} {
		cache := filepath.Join(b.node.Dir, "cni", "results", node.Network+"-"+p.ContainerID+"-"+node.IfName)
		if err := os.Truncate(cache, 0); err != nil { // as power loss leaves it
			t.Fatal(err)
		}
		b.tell(apiPod(p, node.Enrolled()))
	}
	k := b.start(func(o *pods.Options) { o.Every = 300 * time.Millisecond })
	b.event(busy, pods.EnrolledLate)
	if !b.reaches(busy) {
		t.Error("the pod is not governed")
	}
	if e := b.event(idle, pods.NotGoverned); !strings.Contains(e.Message, "recreate the pod") {
		t.Errorf("event says %q, want the remedy", e.Message)
	}
	b.planned(k, idle, "tried again")

	// No DEL will take it for its own: it goes with its cgroup and its interface.
	b.forget(busy)
	if err := b.node.LosePod(busy); err != nil {
		t.Fatal(err)
	}
	b.eventually("end of the pod that was lost", func() error {
		all, err := b.netns.Known(b.ctx)
		if err == nil && len(all) > 0 {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
	b.forget(idle)
}

// What cannot be obeyed changes nothing, and is told with its remedy.
func TestRefuses(t *testing.T) {
	b := newBed(t, node.Options{})
	in := b.pod(node.PodSpec{Name: "in", Annotations: node.Enrolled()})
	out, host := b.plainPod("out"), b.plainPod("host")
	bad := map[string]string{node.EnrollAnnotation: "yes"}
	b.tell(apiPod(in, bad))
	b.tell(apiPod(out, bad))
	onHost := apiPod(host, node.Enrolled())
	onHost.Spec.HostNetwork = true
	b.tell(onHost)
	k := b.start()
	for p, want := range map[*node.Pod]string{in: `set it to "true" or "false"`, out: `set it to "true" or "false"`, host: "hostNetwork"} {
		if e := b.event(p, pods.NotGoverned); !strings.Contains(e.Message, want) || e.Type != "Warning" {
			t.Errorf("event of pod %s: %s %q, want %q", p.Name, e.Type, e.Message, want)
		}
		b.planned(k, p, want)
	}
	if !b.reaches(in) || b.reaches(out) || b.links(host) != 0 {
		t.Errorf("governed: in %t, out %t, host %d links; want them as they were", b.reaches(in), b.reaches(out), b.links(host))
	}
}

// A pod is told of policies that nobody enforces: once, and again when they are others.
func TestTellsOfPolicies(t *testing.T) {
	b := newBed(t, node.Options{})
	in := b.pod(node.PodSpec{Name: "in", Annotations: node.Enrolled()})
	out := b.plainPod("out")
	b.tell(apiPod(in, node.Enrolled()))
	b.tell(apiPod(out, nil))
	var policies atomic.Pointer[map[string][]string]
	say := func(names ...string) { policies.Store(&map[string][]string{"default/in": names, "default/out": names}) }
	say("default/deny", "default/lock")
	b.start(func(o *pods.Options) {
		o.Every = 50 * time.Millisecond
		o.Policies = func() map[string][]string { return *policies.Load() }
	})
	if e := b.event(in, pods.NotEnforced); e.Type != "Warning" || !strings.HasSuffix(e.Message, ": default/deny, default/lock") {
		t.Errorf("event %s %q", e.Type, e.Message)
	}
	say("default/lock")
	b.eventually("the event of the other set", func() error {
		for _, e := range b.events(in) {
			if strings.HasSuffix(e.Message, ": default/lock") {
				return nil
			}
		}
		return errNotYet
	})
	total := int32(0)
	for _, e := range b.events(in) {
		total += max(e.Count, 1)
	}
	if total != 2 || len(b.events(out)) != 0 {
		t.Errorf("%d events, want 2; %d of the pod that is not enrolled", total, len(b.events(out)))
	}
}

// Pods that started ungoverned since the mesh was not ready are enrolled when it is.
func TestEnrolsWhoPassed(t *testing.T) {
	b := newBed(t, node.Options{})
	state, err := b.rt.State()
	if err != nil {
		t.Fatal(err)
	}
	next, err := b.rt.NextID()
	if err != nil {
		t.Fatal(err)
	}
	phase := func(p bpf.Phase) {
		if err := b.rt.SetState(p, state.Generation, next); err != nil {
			t.Fatal(err)
		}
	}
	phase(bpf.PhaseLoaded)
	annotations := map[string]string{node.EnrollAnnotation: "true", optin.AnnotationOnUnready: "pass"}
	p := b.pod(node.PodSpec{Name: "passed", Annotations: annotations})
	b.tell(apiPod(p, annotations))
	k := b.start()
	b.planned(k, p, "as soon as the mesh is live")
	if b.reaches(p) || len(b.events(p)) > 0 {
		t.Errorf("governed %t, %d events, while nothing is live", b.reaches(p), len(b.events(p)))
	}
	phase(bpf.PhaseLive)
	b.event(p, pods.EnrolledLate)
	if !b.reaches(p) {
		t.Error("the pod is not governed")
	}
}

// A helper that dies while a pod drains is followed by one that goes on with it.
func TestDrainOutlivesTheHelper(t *testing.T) {
	b := newBed(t, node.Options{})
	p := b.pod(node.PodSpec{Name: "client", Annotations: node.Enrolled()})
	b.tell(apiPod(p, p.Annotations))
	k := b.start()
	kept, err := p.Dial(b.ctx, wire.Dial{Network: wire.TCP, Addr: echoVIP, Keep: true})
	if err != nil || kept.Server != "echo" {
		t.Fatalf("%+v, %v", kept, err)
	}
	b.tell(apiPod(p, nil))
	b.event(p, pods.Draining)
	k.stop()
	if res, err := p.Exchange(b.ctx, wire.Exchange{Handle: kept.Handle}); err != nil || res.Peer != echoVIP {
		t.Errorf("without a helper the open connection answers %+v, %v", res, err)
	}
	if b.reaches(p) {
		t.Error("without a helper what is new is governed")
	}
	k = b.start()
	b.planned(k, p, "open: 1")
	if err := p.Hangup(b.ctx, kept.Handle); err != nil {
		t.Fatal(err)
	}
	b.event(p, pods.Released)
	if b.links(p) != 0 {
		t.Errorf("%d links are left", b.links(p))
	}
}

// away is an API server that has not answered yet.
type away struct{ changed chan struct{} }

func (away) View() (plan.View, bool)              { return plan.View{}, false }
func (a away) Changed() <-chan struct{}           { return a.changed }
func (away) Event(plan.Pod, bool, string, string) {}

// While the API server is away the last good set stays, and so do pods.
func TestLastGoodStays(t *testing.T) {
	b := newBed(t, node.Options{})
	if err := optin.Write(b.node.StateDir, optin.Set{Namespaces: map[string]optin.Mode{"default": optin.Enroll}}); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(optin.Path(b.node.StateDir))
	if err != nil {
		t.Fatal(err)
	}
	p := b.plainPod("client")
	a := away{make(chan struct{})}
	k := b.start(func(o *pods.Options) { o.Cluster, o.Every = a, 50*time.Millisecond })
	for range 3 {
		select { // it looks, each time
		case a.changed <- struct{}{}:
		case <-b.ctx.Done():
			t.Fatal("nobody looks")
		}
	}
	k.stop()
	if now, err := os.Stat(optin.Path(b.node.StateDir)); err != nil || !os.SameFile(before, now) {
		t.Errorf("the set was written anew: %v", err)
	}
	if !b.reaches(p) {
		t.Error("a pod that had opted in is not governed")
	}
}

// Pods come, go and change their minds while the keeper follows; nothing is left of any,
// whoever was first. The bed's node looks for it.
func TestChurn(t *testing.T) {
	b := newBed(t, node.Options{LateEnrolment: true})
	b.start(func(o *pods.Options) { o.Every = 100 * time.Millisecond })
	const workers, rounds = 4, 6
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	var running sync.WaitGroup
	for w := range workers {
		running.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			minds := []map[string]string{nil, node.Enrolled(), {node.EnrollAnnotation: "false"}, {node.EnrollAnnotation: "yes"}}
			for i := range rounds {
				spec := node.PodSpec{Name: fmt.Sprintf("p%d-%d", w, i), Annotations: minds[r.IntN(3)]}
				p, err := b.node.AddPod(ctx, spec)
				if err != nil {
					b.Error(err)
					return
				}
				api := b.api.CoreV1().Pods(p.Namespace)
				if _, err := api.Create(ctx, apiPod(p, spec.Annotations), metav1.CreateOptions{}); err != nil {
					b.Error(err)
				}
				for range r.IntN(4) {
					if _, err := p.Dial(ctx, wire.Dial{Network: wire.TCP, Addr: echoVIP, Timeout: time.Second}); err != nil {
						b.Error(err)
					}
					if _, err := api.Update(ctx, apiPod(p, minds[r.IntN(len(minds))]), metav1.UpdateOptions{}); err != nil {
						b.Error(err)
					}
				}
				if err := b.node.DelPod(ctx, p); err != nil {
					b.Error(err)
				}
				if err := api.Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	running.Wait()
	b.eventually("end of all pods", func() error {
		all, err := b.netns.Known(b.ctx)
		records, recordsErr := b.netns.Records(b.ctx)
		if err = errors.Join(err, recordsErr); err == nil && len(all)+len(records) > 0 {
			err = fmt.Errorf("%+v, %+v", all, records)
		}
		return err
	})
}

// Many pods of a namespace that opts in at once.
func TestManyAtOnce(t *testing.T) {
	b := newBed(t, node.Options{})
	const n = 30
	var all []*node.Pod
	for i := range n {
		p := b.plainPod(fmt.Sprintf("p%d", i))
		all = append(all, p)
		b.tell(apiPod(p, nil))
	}
	b.start()
	count := func() int {
		known, err := b.netns.Known(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		ready := 0
		for _, k := range known {
			if k.Ready && !k.Draining {
				ready++
			}
		}
		return ready
	}
	reach := func(want int) time.Duration {
		t.Helper()
		return b.eventually(fmt.Sprintf("%d pods enrolled", want), func() error {
			if got := count(); got != want {
				return fmt.Errorf("%d are", got)
			}
			return nil
		})
	}
	b.namespace("default", map[string]string{optin.LabelMode: "kmesh"})
	t.Logf("%d pods enrolled within %v", n, reach(n))
	b.namespace("default", nil)
	t.Logf("%d pods drain within %v", n, reach(0))
	for _, p := range all {
		b.eventually("links of pod "+p.Name, func() error {
			if b.links(p) != 0 {
				return errNotYet
			}
			return nil
		})
	}
}
