// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"slices"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/lastgood"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// WorkloadsName is how the source of the workload API is asked for.
const WorkloadsName = "workloads"

// addressType is the workload API's type of services and workloads.
const addressType = "Address"

// XdsSource is a source with all of its resources.
type XdsSource struct {
	Name, Kind string
	Xds        xds.Status
	Disk       *lastgood.Status
	// Asked are the resources as a server has answered for them; nil for files.
	Asked []xds.ResourceState
	// Used is what became of them.
	Used       []snapshot.ResourceStatus
	Generation uint64
}

// XdsSourceOf joins what a server says of its resources with what became of them.
func XdsSourceOf(s XdsSource) *apiv1.XdsSource {
	out := &apiv1.XdsSource{Name: s.Name, Xds: xdsOf(s.Kind, s.Xds, s.Disk), Generation: s.Generation}
	type key struct{ typ, name string }
	all := make(map[key]*apiv1.XdsResource)
	for _, r := range s.Asked {
		one := xdsResourceOf(r)
		all[key{r.Type, r.Name}] = one
		out.Resources = append(out.Resources, one)
	}
	for _, u := range s.Used {
		one := all[key{u.Type, u.Name}]
		if one == nil { // the workload API has services and workloads under one type
			one = all[key{addressType, u.Name}]
		}
		if one == nil { // a file's, or from disk
			one = &apiv1.XdsResource{Type: u.Type, Name: u.Name, Version: u.Version}
			out.Resources = append(out.Resources, one)
		}
		one.Use = string(u.State)
	}
	slices.SortFunc(out.Resources, func(a, b *apiv1.XdsResource) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func xdsResourceOf(r xds.ResourceState) *apiv1.XdsResource {
	return &apiv1.XdsResource{
		Type: r.Type, Name: r.Name, State: string(r.State), Version: r.Version,
		RejectedVersion: r.RejectedVersion, LastError: r.LastError, SinceUnixSeconds: seconds(r.Since),
	}
}
