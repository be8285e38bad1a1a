// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"kmesh/test/e2e/ask"
	"kmesh/test/e2e/kubenode"
	"kmesh/test/node"
)

func TestMain(m *testing.M) { kubenode.Main(m) }

// image is Kmesh's, as make e2e builds it for this machine.
const image = "../../bin/e2e-image.tar"

// podsLimit is how long pods may take to start or to be gone, on a machine that others use too.
const podsLimit = time.Minute

// bed is a node that a test works on.
type bed struct {
	*testing.T
	ctx    context.Context
	n      *kubenode.Node
	kmesh  kmesh
	before map[string]string // network, before Kmesh
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{T: t, ctx: t.Context(), n: kubenode.ForTest(t, kubenode.Options{Images: []string{image}})}
	b.before = b.network()
	return b
}

// spec is a pod of the test's own image, bound to the node.
func (b *bed) spec(name string, annotations map[string]string) *core.Pod {
	grace, no := int64(1), false
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: name, Namespace: "default", Annotations: annotations},
		Spec: core.PodSpec{
			NodeName: b.n.Name, TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			Containers: []core.Container{{
				Name: "app", Image: kubenode.Image, ImagePullPolicy: core.PullNever, Args: []string{"serve"},
				// A container runs before its program listens, and a pod shall not be Ready then.
				StartupProbe: &core.Probe{
					ProbeHandler:  core.ProbeHandler{TCPSocket: &core.TCPSocketAction{Port: intstr.FromInt32(8080)}},
					PeriodSeconds: 1, FailureThreshold: 60,
				},
			}},
		},
	}
}

func (b *bed) create(spec *core.Pod) *core.Pod {
	b.Helper()
	p, err := b.n.Client.CoreV1().Pods(spec.Namespace).Create(b.ctx, spec, meta.CreateOptions{})
	if err != nil {
		b.Fatalf("creating pod %s: %v", spec.Name, err)
	}
	return p
}

func (b *bed) get(p *core.Pod) *core.Pod {
	b.Helper()
	p, err := b.n.Client.CoreV1().Pods(p.Namespace).Get(b.ctx, p.Name, meta.GetOptions{})
	if err != nil {
		b.Fatalf("asking for a pod: %v", err)
	}
	return p
}

// until asks every 50 ms until the answer is nil; the test ends with the last one when the time is over.
func (b *bed) until(limit time.Duration, what string, ask func() error) {
	b.Helper()
	began := time.Now()
	deadline := time.After(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		last := ask()
		if last == nil {
			if took := time.Since(began); took > 10*time.Second {
				b.Logf("%s: for %s", what, took.Round(time.Second))
			}
			return
		}
		select {
		case <-b.ctx.Done():
			b.Fatalf("%s: %v: %v", what, context.Cause(b.ctx), last)
		case <-deadline:
			b.Fatalf("%s, within %s: %v", what, limit, last)
		case <-tick.C:
		}
	}
}

// waitReady waits until all are Ready, and returns them as they are then.
func (b *bed) waitReady(pods ...*core.Pod) []*core.Pod {
	b.Helper()
	now := make([]*core.Pod, len(pods))
	b.until(podsLimit, "pods did not become Ready", func() error {
		var not []error
		all, err := b.list()
		if err != nil {
			return err
		}
		for i, p := range pods {
			now[i] = all[p.UID]
			if now[i] == nil {
				not = append(not, fmt.Errorf("%s is gone", p.Name))
			} else if !ready(now[i]) {
				not = append(not, fmt.Errorf("%s is %s: %s", p.Name, now[i].Status.Phase, strings.Join(b.events(p), " | ")))
			}
		}
		return errors.Join(not...)
	})
	return now
}

func (b *bed) list() (map[any]*core.Pod, error) {
	l, err := b.n.Client.CoreV1().Pods("").List(b.ctx, meta.ListOptions{})
	if err != nil {
		return nil, err
	}
	all := map[any]*core.Pod{}
	for i := range l.Items {
		all[l.Items[i].UID] = &l.Items[i]
	}
	return all, nil
}

func ready(p *core.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c core.PodCondition) bool {
		return c.Type == core.PodReady && c.Status == core.ConditionTrue
	})
}

// delete deletes pods and waits until the API server and the cgroups know them no more.
func (b *bed) delete(pods ...*core.Pod) {
	b.Helper()
	for _, p := range pods {
		if err := b.n.Client.CoreV1().Pods(p.Namespace).Delete(b.ctx, p.Name, meta.DeleteOptions{}); err != nil {
			b.Errorf("deleting pod %s: %v", p.Name, err)
		}
	}
	b.until(podsLimit, "pods did not go", func() error {
		all, err := b.list()
		if err != nil {
			return err
		}
		var left []error
		for _, p := range pods {
			if all[p.UID] != nil {
				left = append(left, fmt.Errorf("%s is there", p.Name))
			} else if _, err := os.Stat(b.cgroup(p)); err == nil {
				left = append(left, fmt.Errorf("the cgroup of %s is there", p.Name))
			}
		}
		return errors.Join(left...)
	})
}

// cgroup is where the kubelet puts a pod.
func (b *bed) cgroup(p *core.Pod) string {
	class := strings.ToLower(string(p.Status.QOSClass))
	if p.Status.QOSClass == core.PodQOSGuaranteed {
		class = ""
	}
	return filepath.Join(b.n.CgroupRoot, "kubepods", class, "pod"+string(p.UID))
}

// events are the messages of a pod's events, with their reasons.
func (b *bed) events(p *core.Pod) []string {
	l, err := b.n.Client.CoreV1().Events(p.Namespace).List(b.ctx, meta.ListOptions{FieldSelector: "involvedObject.uid=" + string(p.UID)})
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, e := range l.Items {
		out = append(out, e.Reason+": "+e.Message)
	}
	return out
}

// ask has a pod's program make requests, inside the pod.
func (b *bed) ask(p *core.Pod, q ask.Question) ask.Answer {
	b.Helper()
	body, err := json.Marshal(q)
	if err != nil {
		b.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DialContext: b.n.DialContext, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(b.ctx, http.MethodPost, "http://"+p.Status.PodIP+":9090/", bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		b.Fatalf("telling pod %s to ask: %v", p.Name, err)
	}
	defer resp.Body.Close()
	var a ask.Answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		b.Fatalf("the answer of pod %s: %v", p.Name, err)
	}
	return a
}

// enrolled is the annotation of a pod that opts in.
func enrolled() map[string]string { return node.Enrolled() }
