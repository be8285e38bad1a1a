// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"time"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/lastgood"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/helper/scopes"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// Node is everything that a status tells.
type Node struct {
	Version string // of the helper
	Started time.Time
	NodeID  string
	BPFFS   string
	State   bpf.State
	// XdsKind is "directory" or "server".
	XdsKind string
	// Scopes are the views of the mesh.
	Scopes scopes.Status
	// Workloads is nil where the workload API is not followed.
	Workloads *Workloads
	Fills     []publish.Fill
	Pods      *apiv1.PodsResponse
	// Kubernetes is nil where no API server is followed.
	Kubernetes *apiv1.Kubernetes
	// RefusesEnrolment: pods are kept out that policies select which are not enforced.
	RefusesEnrolment bool
}

// Workloads is how the workload API is.
type Workloads struct {
	Xds  xds.Status
	Disk *lastgood.Status
	// Verdicts are of its resources, Problems what is wrong with them.
	Verdicts, Problems []mesh.Verdict
}

// StatusOf shows the state of the node.
func StatusOf(n Node) *apiv1.StatusResponse {
	out := &apiv1.StatusResponse{
		Version:       n.Version,
		UptimeSeconds: int64(time.Since(n.Started).Seconds()),
		NodeId:        n.NodeID,
		Bpffs:         n.BPFFS,
		Abi:           n.State.ABI,
		Phase:         n.State.Phase.String(),
		Generation:    n.State.Generation,
		Pods:          podCounts(n.Pods),
		Kubernetes:    n.Kubernetes,
		ScopesRefused: n.Scopes.Refused,
		ScopesShared:  uint32(n.Scopes.Shared),

		RefusesEnrolment: n.RefusesEnrolment,
	}
	v := verdicts{out: out, seen: make(map[mesh.Verdict]bool)}
	if d := n.Scopes.Default; d != nil {
		out.Xds, out.Config = xdsOf(n.XdsKind, d.Xds, d.Disk), configOf(d.Config)
		v.ofScope(d)
	}
	if out.Config == nil && n.Scopes.Holding != "" {
		out.Config = &apiv1.Config{}
	}
	if out.Config != nil && n.Scopes.Holding != "" {
		out.Config.Holding = n.Scopes.Holding
	}
	for i := range n.Scopes.Scopes {
		s := &n.Scopes.Scopes[i]
		out.Scopes = append(out.Scopes, &apiv1.Scope{
			Namespace: s.Key.Namespace, ServiceAccount: s.Key.ServiceAccount, Labels: s.Key.Labels, Name: s.Name,
			Pods: uint32(s.Pods), Live: s.Live, Xds: xdsOf(n.XdsKind, s.Xds, s.Disk), Config: configOf(s.Config), Problem: s.Problem,
		})
		v.ofScope(s)
	}
	if w := n.Workloads; w != nil {
		out.Workloads = xdsOf("server", w.Xds, w.Disk)
		v.unenforced(w.Verdicts)
		v.problems(w.Xds.Problems)
		v.problems(w.Problems)
	}
	for _, f := range n.Fills {
		out.Maps = append(out.Maps, &apiv1.Map{Name: f.Map, Entries: f.Entries, Capacity: f.Capacity})
	}
	return out
}

// verdicts collects them, each once: scopes have most of their resources in common, and
// what a source rejects it may also pass on with the resource's name.
type verdicts struct {
	out  *apiv1.StatusResponse
	seen map[mesh.Verdict]bool
}

func (v *verdicts) first(one mesh.Verdict) bool {
	was := v.seen[one]
	v.seen[one] = true
	return !was
}

func (v *verdicts) ofScope(s *scopes.ScopeStatus) {
	for _, r := range s.Config.Resources {
		if r.State != snapshot.Unused { // nothing is served without what such a one asks for
			v.unenforced(r.Verdicts)
		}
	}
	v.problems(s.Xds.Problems)
	v.problems(s.Config.Problems)
	v.problems(s.LeftOut)
}

func (v *verdicts) unenforced(of []mesh.Verdict) {
	for _, one := range of {
		if (one.Class == mesh.UnsupportedCondition || one.Class == mesh.UnsupportedAction) && v.first(one) {
			v.out.Verdicts = append(v.out.Verdicts, verdictOf(one))
		}
	}
}

func (v *verdicts) problems(of []mesh.Verdict) {
	for _, one := range of {
		if v.first(one) {
			v.out.Problems = append(v.out.Problems, verdictOf(one))
		}
	}
}

func configOf(c snapshot.Status) *apiv1.Config {
	out := &apiv1.Config{Version: c.Version, Published: c.Published, PublishError: c.PublishError, Holding: c.Holding}
	for _, r := range c.Resources {
		out.Resources = append(out.Resources, &apiv1.Resource{
			Type: r.Type, Name: r.Name, Source: r.Source, Version: r.Version, State: string(r.State),
		})
	}
	return out
}

func xdsOf(kind string, s xds.Status, disk *lastgood.Status) *apiv1.Xds {
	out := &apiv1.Xds{
		Kind:                  kind,
		Address:               s.Source,
		Connected:             s.Connected,
		SinceUnixSeconds:      seconds(s.Since),
		LastUpdateUnixSeconds: seconds(s.LastUpdate),
	}
	if disk != nil {
		if disk.Stale() {
			out.FromDiskUnixSeconds = seconds(disk.Loaded)
		}
		out.DiskProblem = cmp.Or(disk.WriteError, disk.Problem)
	}
	for _, t := range s.Types {
		shown := &apiv1.XdsType{
			Type: t.Type, Version: t.Version, Resources: uint32(t.Resources),
			Accepted: t.Accepted, Rejected: t.Rejected, LastError: t.LastError,
		}
		for state, n := range t.States {
			if shown.States == nil {
				shown.States = make(map[string]uint32, len(t.States))
			}
			shown.States[string(state)] = uint32(n)
		}
		out.Types = append(out.Types, shown)
	}
	for _, r := range s.Unsettled {
		out.Unsettled = append(out.Unsettled, xdsResourceOf(r))
	}
	return out
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func verdictOf(v mesh.Verdict) *apiv1.Verdict {
	return &apiv1.Verdict{
		Source: v.Source, Type: v.Type, Resource: v.Resource, Field: v.Field,
		Class: v.Class.String(), Message: v.Message,
	}
}
