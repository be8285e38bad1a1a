// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"net/netip"
	"slices"
	"unsafe"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
)

var (
	kinds = map[uint8]string{
		bpf.KindEndpoints: "endpoints", bpf.KindPassthrough: "passthrough",
		bpf.KindBlackhole: "blackhole", bpf.KindRefused: "refused",
	}
	policies = map[uint8]string{
		bpf.PolicyRoundRobin: "ROUND_ROBIN", bpf.PolicyRandom: "RANDOM",
		bpf.PolicyLeastRequest: "LEAST_REQUEST", bpf.PolicyMaglev: "MAGLEV",
	}
)

// clusters shows what a draw by weight is about.
func (t *Tables) clusters(n names, shares []bpf.Share) ([]*apiv1.ClusterShare, error) {
	var total uint64
	for _, s := range shares {
		total += uint64(s.Weight)
	}
	var out []*apiv1.ClusterShare
	for _, s := range shares {
		one := &apiv1.ClusterShare{Name: n.of(s.Cluster), Weight: s.Weight}
		if total > 0 {
			one.Share = float64(s.Weight) / float64(total)
		}
		c, ok, err := lookup[uint32, bpf.Cluster](t.rt.Clusters, s.Cluster)
		if err != nil {
			return nil, err
		}
		if ok {
			one.Kind = kinds[c.Kind]
		}
		if ok && c.Kind == bpf.KindEndpoints {
			one.Policy = policies[c.Policy]
			if one.Endpoints, err = t.endpoints(s.Cluster, c); err != nil {
				return nil, err
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// endpoints lists what may be chosen of a cluster now: what its slots name.
func (t *Tables) endpoints(id uint32, c bpf.Cluster) ([]string, error) {
	mem := t.rt.SlotMemory()
	slots := unsafe.Slice((*bpf.Slot)(unsafe.Pointer(&mem[0])), len(mem)/int(unsafe.Sizeof(bpf.Slot{})))
	seen := make(map[uint32]bool)
	var out []string
	for _, x := range []bpf.Extent{c.V4, c.V6} {
		table, _ := part(slots, x.Offset, x.N)
		for _, s := range table {
			if seen[s.Endpoint] {
				continue
			}
			seen[s.Endpoint] = true
			e, ok, err := lookup[uint32, bpf.Endpoint](t.rt.Endpoints, s.Endpoint)
			if err != nil {
				return nil, err
			}
			if ok && e.Cluster == id {
				out = append(out, addrPort(e.Addr, e.Port, e.Family).String())
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// addrPort reads an address and a port as the maps hold them.
func addrPort(words [4]uint32, port uint16, family uint8) netip.AddrPort {
	return netip.AddrPortFrom(bpf.AddrOf(words, family), bpf.PortWord(port))
}

// guess shows where connections of a service go by default.
func (t *Tables) guess(n names, svc *bpf.Service) ([]*apiv1.ClusterShare, error) {
	return t.clusters(n, svc.Shares[:min(int(svc.N), len(svc.Shares))])
}
