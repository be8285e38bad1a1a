// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"strings"
	"testing"

	"kmesh/test/istiod/control"
	"kmesh/test/node"
)

// perPods are the helper's flags for a view for each kind of pod.
func (b *bed) perPods() []string {
	return []string{"--xds-scopes", "pods", "--kubeconfig", b.c.Kubeconfig, "--node-name", control.NodeName}
}

// What gold and blue pods ask for, and what their scopes make of it.
var (
	goldRoutes = []route{{"/gold/x", "catalog-v2"}, {"/blue/x", "catalog-v1"}, {"/", "catalog-v1"}}
	blueRoutes = []route{{"/gold/x", "catalog-v1"}, {"/blue/x", "catalog-v2"}, {"/", "catalog-v1"}}
)

// scoped makes a pod of each of two scopes, and waits until each has what is its own.
func (b *bed) scoped(suffix string) (gold, blue *node.Pod) {
	b.Helper()
	gold = b.client("red", "gold"+suffix, control.PodOptions{Labels: labels{"tier": "gold"}, Account: "red"})
	blue = b.client("blue", "blue"+suffix, control.PodOptions{Labels: labels{"tier": "iron"}, Account: "blue"})
	for p, routes := range map[*node.Pod][]route{gold: goldRoutes, blue: blueRoutes} {
		for _, r := range routes {
			b.want(p, request{at: catalogAt, host: catalogHost, path: r.path}, r.want)
		}
	}
	return gold, blue
}

// The helper is restarted again and again, by a signal and by force, when it is ready and before, while istiod is there,
// is away, and comes back. No request notices: each goes where the scope of the pod that makes it says.
func TestRestarts(t *testing.T) {
	b := newBed(t)
	b.world()
	b.apply(scopesRoutes)
	b.startHelper(b.perPods()...)
	gold, blue := b.scoped("")
	l := newLoad(b.ctx)
	l.add(gold, goldRoutes...)
	l.add(blue, blueRoutes...)
	defer l.stop()
	l.more(b, 10)

	const restarts, away, back = 20, 7, 13
	args := append(b.c.HelperArgs(), b.perPods()...)
	var started chan error
	for i := range restarts {
		switch i {
		case away:
			b.c.StopIstiod()
		case back: // it takes longer than a restart does
			started = make(chan error, 1)
			go func() { started <- b.c.StartIstiod(b.ctx) }()
		}
		if i%2 == 0 {
			if err := b.helper.Stop(b.ctx); err != nil {
				t.Fatal(err)
			}
		} else {
			b.helper.Kill9()
		}
		l.more(b, 5)
		if i%4 == 3 { // once more, wherever its start has come to
			h, err := b.n.LaunchHelper(b.ctx, args...)
			if err != nil {
				t.Fatal(err)
			}
			l.more(b, int64(5+i))
			h.Kill9()
		}
		b.startHelper(b.perPods()...)
		l.more(b, 10)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	l.end(b)

	// All of them go on to be told.
	b.apply(strings.NewReplacer("/gold/", "/old/", "/blue/", "/blew/").Replace(scopesRoutes))
	b.want(gold, request{at: catalogAt, host: catalogHost, path: "/old/x"}, "catalog-v2")
	b.want(blue, request{at: catalogAt, host: catalogHost, path: "/blew/x"}, "catalog-v2")
	b.want(gold, request{at: catalogAt, host: catalogHost, path: "/blew/x"}, "catalog-v1")
	b.healthy()
}

// The node comes up again without istiod: what was the last good of each scope is on disk, and serves pods that are made
// then. That it is no more than that is a fault until istiod is back.
func TestNodeRestartsWithoutIstiod(t *testing.T) {
	b := newBed(t)
	b.world()
	b.apply(scopesRoutes)
	b.startHelper(b.perPods()...)
	gold, blue := b.scoped("")
	if fault, err := b.faultOf("on disk"); err != nil || fault != "" {
		t.Fatalf("with istiod, check says %q, %v", fault, err)
	}
	if err := b.helper.Stop(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.c.StopIstiod()
	if err := b.n.Restart(gold, blue); err != nil {
		t.Fatal(err)
	}

	b.startHelper(b.perPods()...)
	gold, blue = b.scoped("-again")
	fault, err := b.faultOf("on disk")
	if err != nil || !strings.Contains(fault, "has not said it since") {
		t.Errorf("check says %q (%v), want that it is from disk", fault, err)
	}
	// Both scopes are, in the status also.
	status, err := b.status()
	if err != nil {
		t.Fatal(err)
	}
	fromDisk := 0
	for _, s := range status.Scopes {
		if s.GetXds().GetFromDiskUnixSeconds() != 0 && s.Pods > 0 {
			fromDisk++
		}
	}
	if fromDisk != 2 {
		t.Errorf("%d scopes with pods are from disk, want 2", fromDisk)
	}

	// Neither does another restart of the helper alone lose it.
	b.helper.Kill9()
	b.startHelper(b.perPods()...)
	for p, routes := range map[*node.Pod][]route{gold: goldRoutes, blue: blueRoutes} {
		for _, r := range routes {
			if got := b.ask(p, request{at: catalogAt, host: catalogHost, path: r.path}); got != r.want {
				t.Errorf("after a restart of the helper %s asks for %s: %q, want %q", p.Name, r.path, got, r.want)
			}
		}
	}

	b.apply(strings.NewReplacer("/gold/", "/old/", "/blue/", "/blew/").Replace(scopesRoutes))
	if err := b.c.StartIstiod(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.want(gold, request{at: catalogAt, host: catalogHost, path: "/old/x"}, "catalog-v2")
	b.want(blue, request{at: catalogAt, host: catalogHost, path: "/blew/x"}, "catalog-v2")
	b.until("nothing is from disk any more", func() error {
		fault, err := b.faultOf("on disk")
		if err == nil && fault != "" {
			err = fmt.Errorf("check says %q", fault)
		}
		return err
	})
	b.healthy()
}

// faultOf is the fault that kmeshctl check finds about something; "" if it finds none.
func (b *bed) faultOf(about string) (string, error) {
	// Faults are its exit code also, of which nothing is to be said here.
	out, err := b.n.Kmeshctl(b.ctx, "check")
	if len(out) == 0 {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "FAULT"); ok && strings.Contains(rest, about) {
			return strings.TrimSpace(rest), nil
		}
	}
	return "", nil
}
