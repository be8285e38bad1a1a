// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
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
	Xds     xds.Status
	Config  snapshot.Status
	Fills   []publish.Fill
	Pods    *apiv1.PodsResponse
	// Kubernetes is nil where no API server is followed.
	Kubernetes *apiv1.Kubernetes
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
		Xds:           xdsOf(n.XdsKind, n.Xds),
		Config: &apiv1.Config{
			Version: n.Config.Version, Published: n.Config.Published,
			PublishError: n.Config.PublishError, Holding: n.Config.Holding,
		},
		Pods:       podCounts(n.Pods),
		Kubernetes: n.Kubernetes,
	}
	for _, r := range n.Config.Resources {
		out.Config.Resources = append(out.Config.Resources, &apiv1.Resource{
			Type: r.Type, Name: r.Name, Source: r.Source, Version: r.Version, State: string(r.State),
		})
		for _, v := range r.Verdicts {
			if v.Class == mesh.UnsupportedCondition || v.Class == mesh.UnsupportedAction {
				out.Verdicts = append(out.Verdicts, verdictOf(v))
			}
		}
	}
	// What the source rejects it may also pass on with the resource's name.
	seen := make(map[mesh.Verdict]bool)
	for _, problems := range [][]mesh.Verdict{n.Xds.Problems, n.Config.Problems} {
		for _, v := range problems {
			if !seen[v] {
				seen[v] = true
				out.Problems = append(out.Problems, verdictOf(v))
			}
		}
	}
	for _, f := range n.Fills {
		out.Maps = append(out.Maps, &apiv1.Map{Name: f.Map, Entries: f.Entries, Capacity: f.Capacity})
	}
	return out
}

func xdsOf(kind string, s xds.Status) *apiv1.Xds {
	out := &apiv1.Xds{
		Kind:                  kind,
		Address:               s.Source,
		Connected:             s.Connected,
		SinceUnixSeconds:      seconds(s.Since),
		LastUpdateUnixSeconds: seconds(s.LastUpdate),
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
		out.Unsettled = append(out.Unsettled, &apiv1.XdsResource{
			Type: r.Type, Name: r.Name, State: string(r.State), Version: r.Version,
			RejectedVersion: r.RejectedVersion, LastError: r.LastError, SinceUnixSeconds: seconds(r.Since),
		})
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
