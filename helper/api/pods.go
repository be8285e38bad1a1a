// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"slices"
	"strings"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/netns"
)

// The states of pods and links.
const (
	stateLive    = "live"
	stateSevered = "severed"
	stateDrift   = "drift"
	// It opted out, and is let go when nothing of it is open any more.
	stateDraining = "draining"
)

// PodsOf shows what the kernel has attached, ordered by the pods' names, and of the
// records those that tell of a pod that is not enrolled. scopes are the scopes' ids by
// name.
func PodsOf(pods []netns.Pod, records []netns.Record, scopes map[string]uint32) *apiv1.PodsResponse {
	names := make(map[uint32]string, len(scopes))
	for name, id := range scopes {
		names[id] = name
	}
	out := &apiv1.PodsResponse{}
	for _, r := range records {
		if r.Outcome == netns.Enrolled {
			continue
		}
		out.NotEnrolled = append(out.NotEnrolled, &apiv1.NotEnrolled{
			ContainerId: r.ContainerID, Namespace: r.Namespace, Name: r.Name,
			Outcome: string(r.Outcome), Reason: r.Reason, UnixSeconds: seconds(r.Time),
		})
	}
	slices.SortStableFunc(out.NotEnrolled, func(a, b *apiv1.NotEnrolled) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UnixSeconds, b.UnixSeconds))
	})
	for i := range pods {
		p := podOf(&pods[i])
		p.Scope = names[pods[i].Scope]
		out.Pods = append(out.Pods, p)
	}
	slices.SortStableFunc(out.Pods, func(a, b *apiv1.Pod) int {
		return cmp.Or(
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
			cmp.Compare(a.ContainerId, b.ContainerId), cmp.Compare(a.Network, b.Network), cmp.Compare(a.IfName, b.IfName))
	})
	return out
}

func podOf(p *netns.Pod) *apiv1.Pod {
	out := &apiv1.Pod{
		ContainerId: p.ContainerID,
		Network:     p.Network,
		IfName:      p.IfName,
		Namespace:   p.Namespace,
		Name:        p.Name,
		Uid:         p.UID,
		CgroupInode: p.Cgroup,
		CgroupPath:  p.CgroupPath,
		NetnsCookie: p.NetnsCookie,
		NetnsPath:   p.NetnsPath,
		Ready:       p.Ready,
		Owner:       p.Owner,
		Drift:       p.Drift,
		State:       stateLive,

		EnrolledUnixSeconds: seconds(p.Time),
	}
	switch {
	case !p.Live():
		out.State = stateDrift
	case p.Draining:
		out.State = stateDraining
	}
	for _, l := range p.Links {
		link := &apiv1.Link{
			Hook: l.Hook, Kind: kindOf(l), LinkId: l.ID, ProgId: l.ProgramID, ProgTag: l.ProgramTag,
			State: stateLive, CgroupId: l.CgroupID, Ifindex: l.Ifindex,
		}
		if !l.Live {
			link.State, out.State = stateSevered, stateSevered
		}
		if l.Ifindex != 0 {
			out.Ifindex = l.Ifindex
		}
		out.Links = append(out.Links, link)
	}
	return out
}

// kindOf says how a program is attached.
func kindOf(l netns.Link) string {
	switch {
	case !strings.HasPrefix(l.Hook, "tc_"):
		return "cgroup"
	case l.ID == 0:
		return "clsact"
	default:
		return "tcx"
	}
}

// podCounts counts pods and links by state. The links of a cgroup that several
// sandboxes share are counted once.
func podCounts(pods *apiv1.PodsResponse) *apiv1.PodCounts {
	out := &apiv1.PodCounts{}
	seen := make(map[uint32]bool)
	for _, p := range pods.GetPods() {
		switch p.State {
		case stateLive:
			out.Live++
		case stateSevered:
			out.Severed++
		case stateDraining:
			out.Draining++
		default:
			out.Drift++
		}
		for _, l := range p.Links {
			if l.LinkId != 0 && seen[l.LinkId] {
				continue
			}
			seen[l.LinkId] = true
			if l.State == stateLive {
				out.LinksLive++
			} else {
				out.LinksSevered++
			}
		}
	}
	return out
}
