// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/helper/pods"
	"kmesh/helper/publish"
	"kmesh/helper/scopes"
	"kmesh/helper/xds"
	"kmesh/test/meshfile"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// views is a control plane with a view for each scope: a directory of files, which there is
// or is not yet.
type views struct {
	*bed
	dir     string
	k       *keeper
	manager *scopes.Manager
	stop    func()

	mu      sync.Mutex
	assigns int
}

func (v *views) path(key mesh.ScopeKey) string {
	return filepath.Join(v.dir, fmt.Sprintf("%s-%s-%s", key.Namespace, key.ServiceAccount, key.Labels))
}

// say gives a scope a view in which the service leads to a server.
func (v *views) say(key mesh.ScopeKey, endpoint netip.AddrPort) {
	v.Helper()
	path := v.path(key)
	if err := os.MkdirAll(path, 0o755); err != nil {
		v.Fatal(err)
	}
	mesh := meshfile.Listener("echo", netip.MustParseAddrPort(echoVIP), meshfile.Share{Cluster: "echo", Weight: 1}) + meshfile.Cluster("echo", endpoint)
	if err := meshfile.Write(path, "mesh.yaml", mesh); err != nil {
		v.Fatal(err)
	}
}

// manage runs a manager as the helper does, over maps that serve already.
func (v *views) manage(view bool, most int) {
	v.Helper()
	log := slog.New(slog.NewTextHandler(v.log, nil))
	pub, err := publish.New(v.rt, log)
	if err != nil {
		v.Fatal(err)
	}
	v.manager = scopes.New(scopes.Options{
		Open: func(key mesh.ScopeKey) (xds.Source, error) {
			return xds.NewFiles(xds.FilesOptions{Dir: v.path(key), Logger: log}), nil
		},
		Most: most,
		Pods: func(ctx context.Context) ([]scopes.Pod, bool) {
			known, err := v.netns.Known(ctx)
			if err != nil {
				return nil, false
			}
			if !view {
				return scopes.PodsOf(known, nil, nil), true
			}
			said, ok := v.k.kube.View()
			if !ok {
				return nil, false
			}
			return scopes.PodsOf(known, &said, nil), true
		},
		Installed: pub.ScopeIDs, Name: publish.ScopeName,
		Assign: func(space uint64, scope uint32) error {
			v.mu.Lock()
			v.assigns++
			v.mu.Unlock()
			table, err := bpf.OpenPods(v.node.BPFFS)
			if err != nil {
				return err
			}
			defer table.Close()
			return table.SetScope(space, scope)
		},
		Publish: func(ctx context.Context, s *mesh.Snapshot) error {
			_, err := pub.Publish(ctx, s)
			return err
		},
		Inherited: true, Resolve: func([]mesh.Lookup) {}, StateDir: v.node.StateDir, Log: log,
	})
	ctx, cancel := context.WithCancel(v.ctx)
	done := make(chan error, 1)
	go func() { done <- v.manager.Run(ctx) }()
	v.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			v.Errorf("the manager ended: %v", err)
		}
	})
	v.Cleanup(v.stop)
}

// server returns the server that the service leads a pod to.
func (v *views) server(p *node.Pod) string {
	v.Helper()
	res, err := p.Dial(v.ctx, wire.Dial{Network: wire.TCP, Addr: echoVIP, Timeout: time.Second})
	if err != nil {
		v.Fatal(err)
	}
	return res.Server
}

func (v *views) leads(p *node.Pod, to string) {
	v.Helper()
	v.eventually(fmt.Sprintf("pod %s to %q", p.Name, to), func() error {
		if got := v.server(p); got != to {
			return fmt.Errorf("it is led to %q", got)
		}
		return nil
	})
}

// echo makes a server, and returns its address.
func (v *views) echo(name string) netip.AddrPort {
	v.Helper()
	p := v.plainPod(name)
	at, _, err := p.Listen(v.ctx, wire.Listen{Network: wire.TCP, Addr: ":8080", Name: name})
	if err != nil {
		v.Fatal(err)
	}
	return netip.AddrPortFrom(p.IP4, at.Port())
}

// Pods of other labels have another view; one that changes its labels changes its view; a
// restart keeps what pods have until it is known again.
func TestScopes(t *testing.T) {
	b := newBed(t, node.Options{})
	v := &views{bed: b, dir: t.TempDir()}
	gold, iron := v.echo("gold-server"), v.echo("iron-server")
	client := func(name string) *node.Pod { return b.pod(node.PodSpec{Name: name, Annotations: node.Enrolled()}) }
	labelled := func(p *node.Pod, tier string) {
		o := apiPod(p, node.Enrolled())
		o.Labels = map[string]string{"tier": tier, "pod-template-hash": p.Name}
		b.tell(o)
	}
	key := func(tier string) mesh.ScopeKey {
		return scopes.KeyOf("default", "", map[string]string{"tier": tier})
	}
	v.say(key("gold"), gold)
	v.say(key("iron"), iron)
	one, two, three := client("one"), client("two"), client("three")
	labelled(one, "gold")
	labelled(two, "iron")
	labelled(three, "gold")
	v.k = b.start(func(o *pods.Options) {
		o.Noticed = func() {
			if v.manager != nil {
				v.manager.Poke()
			}
		}
	})
	v.manage(true, 0)
	v.leads(one, "gold-server")
	v.leads(two, "iron-server")
	v.leads(three, "gold-server")
	if st := v.manager.Status(); len(st.Scopes) != 2 || st.Default != nil {
		t.Errorf("status %+v, want two scopes", st)
	}

	labelled(two, "gold")
	v.leads(two, "gold-server")
	b.eventually("the scope without pods is closed", func() error {
		if st := v.manager.Status(); len(st.Scopes) != 1 || st.Scopes[0].Pods != 3 {
			return fmt.Errorf("scopes %+v", st.Scopes)
		}
		return nil
	})
	labelled(two, "iron")
	v.leads(two, "iron-server")

	// A restart while neither the API server nor one of the views says anything: all goes
	// on as it was, and no other scope is written before that one is there.
	v.stop()
	if err := os.Rename(v.path(key("iron")), v.dir+"/away"); err != nil {
		t.Fatal(err)
	}
	before := v.assigns
	v.manage(false, 0)
	b.eventually("the first snapshot waits for the scope", func() error {
		st := v.manager.Status()
		if st.Holding == "" || len(st.Scopes) != 2 {
			return fmt.Errorf("status %+v", st)
		}
		return nil
	})
	if got := v.server(two) + v.server(one); got != "iron-servergold-server" {
		t.Errorf("meanwhile the pods are led to %s", got)
	}
	if err := os.Rename(v.dir+"/away", v.path(key("iron"))); err != nil {
		t.Fatal(err)
	}
	b.eventually("the first snapshot", func() error {
		for _, s := range v.manager.Status().Scopes {
			if !s.Live {
				return fmt.Errorf("%+v is not live", s.Key)
			}
		}
		return nil
	})
	if got := v.server(two) + v.server(one); got != "iron-servergold-server" {
		t.Errorf("after the restart the pods are led to %s", got)
	}
	if v.assigns != before {
		t.Errorf("%d pods were given a scope that they had", v.assigns-before)
	}

	// Above the cap, the namespace's.
	v.stop()
	v.say(mesh.ScopeKey{Namespace: "default"}, iron)
	labelled(one, "iron")
	four := client("four")
	labelled(four, "lead")
	v.manage(true, 1)
	v.leads(four, "iron-server")
	b.eventually("the status tells of the cap", func() error {
		if st := v.manager.Status(); st.Shared != 2 || st.Most != 1 {
			return fmt.Errorf("%d scopes share one of %d", st.Shared, st.Most)
		}
		return nil
	})
	v.stop()
	v.k.stop()
}
