// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"net/netip"
	"slices"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/publish"
)

// FlowsOf shows connections, ordered by pod and client. pod is "namespace/name", or
// empty for all; now is of bpf.FlowClock.
func FlowsOf(flows []publish.Flow, pods *apiv1.PodsResponse, pod string, now uint32) *apiv1.FlowsResponse {
	byCookie := make(map[uint64]*apiv1.Pod)
	for _, p := range pods.GetPods() {
		// Of two attachments of one pod the record of one may be gone.
		if byCookie[p.NetnsCookie].GetName() == "" {
			byCookie[p.NetnsCookie] = p
		}
	}
	out := &apiv1.FlowsResponse{}
	for i := range flows {
		of := byCookie[flows[i].Key.Pod]
		if pod != "" && of.GetNamespace()+"/"+of.GetName() != pod {
			continue
		}
		f := flowOf(&flows[i], now)
		f.Namespace, f.Name = of.GetNamespace(), of.GetName()
		out.Flows = append(out.Flows, f)
	}
	slices.SortStableFunc(out.Flows, func(a, b *apiv1.Flow) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
			cmp.Compare(a.NetnsCookie, b.NetnsCookie), cmp.Compare(a.Client, b.Client), cmp.Compare(a.Vip, b.Vip))
	})
	return out
}

func flowOf(f *publish.Flow, now uint32) *apiv1.Flow {
	family := uint8(f.Key.Family)
	out := &apiv1.Flow{
		Id:          bpf.FlowRef{Slot: f.Slot, Generation: f.Generation}.String(),
		NetnsCookie: f.Key.Pod,
		Client:      address(f.Key.Client, f.Key.ClientPort, family),
		Vip:         address(f.Key.Vip, f.Key.VipPort, family),
		State:       f.StateName(),
		Scope:       f.Scope,
		Service:     f.ServiceName,
		Cluster:     f.ClusterName,
		Route:       f.RouteName,
		Pin:         f.PinName(),
		Requests:    f.Requests,
		Rebinds:     f.Rebinds,
		IdleMs:      uint64(f.Idle(now).Milliseconds()),
	}
	for i := range f.Legs {
		l := &f.Legs[i]
		if l.State == bpf.LegNone {
			continue
		}
		out.Legs = append(out.Legs, &apiv1.FlowLeg{
			Endpoint: address(l.Addr, l.Port, family),
			Port:     uint32(bpf.PortWord(l.LegPort)),
			State:    l.StateName(),
			Current:  f.Flags&bpf.FlowIdle == 0 && int(f.Leg) == i,
			Cluster:  f.LegClusters[i],
			Requests: l.Requests,
			Dc:       l.Dc,
			Ds:       l.Ds,
		})
	}
	return out
}

// address reads words of the maps; PortWord is its own inverse.
func address(words [4]uint32, port uint16, family uint8) string {
	return netip.AddrPortFrom(bpf.AddrOf(words, family), bpf.PortWord(port)).String()
}
