// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"kmesh/helper/api"
	"kmesh/helper/lastgood"
	"kmesh/helper/mesh"
	"kmesh/helper/pods/kube"
	"kmesh/helper/scopes"
	"kmesh/helper/snapshot"
	"kmesh/helper/translate/workload"
	"kmesh/helper/xds"
)

// workloadsWait is how long the first snapshot waits for the workload API: a control plane
// that does not speak it says nothing at all.
const workloadsWait = 10 * time.Second

// workloadsFile is its last good state, in the state directory.
const workloadsFile = "workloads"

// workloads is the workload API: one stream for the node, with the helper's own identity.
type workloads struct {
	source *xds.Server
	store  *snapshot.Workloads
	disk   *lastgood.Keeper
	load   bool
	until  time.Time
	late   bool // said so
}

// makeWorkloads makes it, and joins it with the scopes.
func (c *Controller) makeWorkloads(opts *scopes.Options) error {
	o := c.opts
	if len(o.XDSServers) == 0 {
		return fmt.Errorf("--workload-api is about a server: give --xds-server HOST:PORT")
	}
	server := o.server()
	server.Protocol = xds.Delta // its resources have no names in the other one
	server.Types = snapshot.WorkloadTypes()
	server.Node = o.node(ztunnelID(o.NodeID, o.NodeIP), o.NodeMetadata)
	server.Logger = o.Log.With("source", "workloads")
	source, err := xds.NewServer(server)
	if err != nil {
		return asFlag(err)
	}
	w := &workloads{source: source, until: time.Now().Add(workloadsWait), store: snapshot.NewWorkloads(snapshot.WorkloadsOptions{
		Here:   workload.Here{Node: o.NodeName, Cluster: o.Server.ClusterID, Network: o.Network},
		Logger: o.Log,
	})}
	c.workloads = w
	w.disk, err = lastgood.New(w.store, lastgood.Options{Dir: o.StateDir, Name: workloadsFile, Types: snapshot.WorkloadTypes(), Log: o.Log})
	if err != nil {
		return err
	}
	w.load = !opts.Inherited // else the maps have what the disk has, or newer
	opts.Announced = func() (*snapshot.Announced, bool) {
		if w.store.Heard() {
			return w.store.Announced(), true
		}
		if late := time.Now().After(w.until); late && !w.late {
			w.late = true
			o.Log.Warn("the workload API says nothing: what it would announce is not governed until it does", "waited", workloadsWait)
		}
		return nil, w.late
	}
	return nil
}

// ztunnelID is the id by which the workload API is asked: who asks stays the same.
func ztunnelID(id, ip string) string {
	if _, rest, ok := strings.Cut(id, "~"); ok && strings.Count(rest, "~") == 2 {
		return "ztunnel~" + rest
	}
	ns := cmp.Or(kube.OwnNamespace(), "default")
	return fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.cluster.local", cmp.Or(ip, "127.0.0.1"), id, ns, ns)
}

// run follows the source until ctx ends.
func (w *workloads) run(ctx context.Context, heard func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		silent := time.NewTimer(time.Until(w.until))
		defer silent.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.store.Changed():
			case <-silent.C:
			}
			heard()
			select { // what follows now is gathered
			case <-ctx.Done():
				return
			case <-time.After(workloadsGather):
			}
		}
	}()
	defer w.disk.Close()
	if w.load {
		w.disk.Load(ctx)
	}
	err := w.source.Run(ctx, w.disk)
	<-done
	return err
}

// workloadsGather is how long changes of the workload API that follow a first one are
// gathered.
const workloadsGather = 50 * time.Millisecond

// status tells how it is; enrolled are the pods that are governed.
func (w *workloads) status(enrolled map[string]bool) *api.Workloads {
	st := w.store.Status()
	disk := w.disk.Status()
	out := &api.Workloads{Xds: w.source.Status(), Disk: &disk, Problems: st.Problems}
	for _, r := range st.NotEnforced {
		v := r.Verdict
		if r.Resources > 1 {
			v.Message += fmt.Sprintf(" (and %d more resources)", r.Resources-1)
		}
		out.Verdicts = append(out.Verdicts, v)
	}
	out.Verdicts = append(out.Verdicts, w.store.Unenforced(func(w *mesh.Workload) bool { return enrolled[w.Namespace+"/"+w.Name] })...)
	return out
}
