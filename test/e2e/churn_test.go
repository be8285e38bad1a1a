// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
)

// each is how many pods opt in, and how many do not.
const each = 20

// crowd creates as many pods as churn does, all with the same annotations.
func (b *bed) crowd(round string, annotations map[string]string) []*core.Pod {
	b.Helper()
	var pods []*core.Pod
	for i := range 2 * each {
		pods = append(pods, b.create(b.spec(fmt.Sprintf("%s-%d", round, i), annotations)))
	}
	return pods
}

// oneByOne creates a few pods of both kinds, each when the last one is Ready, and looks at them in the kernel.
func (b *bed) oneByOne() (in, out []*core.Pod) {
	b.Helper()
	for i := range each / 2 {
		p := b.waitReady(b.create(b.spec(fmt.Sprintf("single-in-%d", i), enrolled())))[0]
		if err := b.governed(p); err != nil {
			b.Error(err)
		}
		q := b.waitReady(b.create(b.spec(fmt.Sprintf("single-out-%d", i), nil)))[0]
		if err := b.untouched(q); err != nil {
			b.Error(err)
		}
		in, out = append(in, p), append(out, q)
	}
	return in, out
}

// churn creates pods of both kinds at once and looks at all of them in the kernel. beside runs while they are created.
func (b *bed) churn(round string, beside func()) (in, out []*core.Pod) {
	b.Helper()
	for i := range each {
		in = append(in, b.create(b.spec(fmt.Sprintf("in-%s-%d", round, i), enrolled())))
		out = append(out, b.create(b.spec(fmt.Sprintf("out-%s-%d", round, i), nil)))
	}
	if beside != nil {
		beside()
	}
	began := time.Now()
	in, out = b.waitReady(in...), b.waitReady(out...)
	b.Logf("%s: %d pods that opted in and %d that did not are Ready after %s", round, each, each, time.Since(began).Round(10*time.Millisecond))
	for i := range each {
		if err := b.governed(in[i]); err != nil {
			b.Error(err)
		}
		if err := b.untouched(out[i]); err != nil {
			b.Error(err)
		}
		for _, p := range []*core.Pod{in[i], out[i]} {
			for _, e := range b.events(p) {
				if strings.HasPrefix(e, "Failed") || strings.HasPrefix(e, "BackOff") {
					b.Errorf("pod %s did not start at once: %s", p.Name, e)
				}
			}
		}
	}
	b.n.RecordPins()
	return in, out
}

// kind is pods that have something in common.
type kind struct {
	name string
	pods []*core.Pod
}

// reportAdds prints how long the chain of plugins took for pods of each kind, as containerd saw it: the primary plugin,
// and kmesh-cni where it is in the chain.
func (b *bed) reportAdds(kinds ...kind) {
	b.Helper()
	adds, err := b.n.Adds()
	if err != nil {
		b.Fatal(err)
	}
	for _, k := range kinds {
		var took []time.Duration
		for _, p := range k.pods {
			for _, a := range adds {
				if a.PodUID == string(p.UID) {
					took = append(took, a.Took)
				}
			}
		}
		if len(took) < len(k.pods) {
			b.Errorf("containerd's log has %d ADDs of %d pods (%s)", len(took), len(k.pods), k.name)
			continue
		}
		slices.Sort(took)
		b.Logf("CNI ADD, whole chain, %-26s n=%-3d p50 %7.1f ms  p99 %7.1f ms  max %7.1f ms", k.name, len(took),
			ms(quantile(took, 0.50)), ms(quantile(took, 0.99)), ms(took[len(took)-1]))
	}
}

// quantile of sorted values: the least that at least the share q does not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
