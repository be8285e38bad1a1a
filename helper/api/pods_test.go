// SPDX-License-Identifier: Apache-2.0

package api

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/netns"
)

// link is a live link on the cgroup or interface given.
func link(hook string, id uint32, cgroup uint64, ifindex uint32) netns.Link {
	return netns.Link{
		Hook: hook, ID: id, ProgramID: 9, ProgramTag: "abcd", CgroupID: cgroup, Ifindex: ifindex,
		Live: cgroup != 0 || ifindex != 0,
	}
}

func TestPodsOf(t *testing.T) {
	enrolled := time.Unix(1700000000, 0)
	full := netns.Pod{
		Request: netns.Request{
			Attachment: netns.Attachment{ContainerID: "c1", Network: "net", IfName: "eth0"},
			Namespace:  "shop", Name: "web", UID: "u", NetnsPath: "/run/netns/x", CgroupPath: "/kubepods/podu",
		},
		Cgroup: 77, NetnsCookie: 88, Ready: true, Owner: true, Time: enrolled,
		Links: []netns.Link{link("connect4", 1, 77, 0), link("tc_egress", 2, 0, 3)},
	}
	old := full
	old.ContainerID, old.Namespace = "c0", "shop"
	old.Owner = false
	old.Links = []netns.Link{link("connect4", 1, 77, 0), link("tc_egress", 0, 0, 5)} // the same cgroup's; a filter
	severed := netns.Pod{Cgroup: 5, Ready: true, Drift: []string{"connect4 is severed"}, Links: []netns.Link{link("connect4", 4, 0, 0)}}
	severed.ContainerID = "c2"
	drifted := netns.Pod{Drift: []string{"enrolment was not finished"}}
	drifted.ContainerID = "c3"

	records := []netns.Record{
		{Request: full.Request, Outcome: netns.Enrolled, Time: enrolled},
		{Request: netns.Request{Attachment: netns.Attachment{ContainerID: "c4"}, Namespace: "shop", Name: "b"}, Outcome: netns.Passed, Reason: "not live", Time: enrolled},
		{Request: netns.Request{Attachment: netns.Attachment{ContainerID: "c5"}, Namespace: "shop", Name: "a"}, Outcome: netns.Failed, Reason: "no cgroup"},
	}
	got := PodsOf([]netns.Pod{full, drifted, severed, old}, records, map[string]uint32{"shop/web/": 9})
	want := &apiv1.PodsResponse{NotEnrolled: []*apiv1.NotEnrolled{
		{ContainerId: "c5", Namespace: "shop", Name: "a", Outcome: "failed", Reason: "no cgroup"},
		{ContainerId: "c4", Namespace: "shop", Name: "b", Outcome: "passed", Reason: "not live", UnixSeconds: 1700000000},
	}, Pods: []*apiv1.Pod{
		{ContainerId: "c2", CgroupInode: 5, Ready: true, State: "severed", Drift: []string{"connect4 is severed"}, Links: []*apiv1.Link{
			{Hook: "connect4", Kind: "cgroup", LinkId: 4, ProgId: 9, ProgTag: "abcd", State: "severed"},
		}},
		{ContainerId: "c3", State: "drift", Drift: []string{"enrolment was not finished"}},
		{
			ContainerId: "c0", Network: "net", IfName: "eth0", Namespace: "shop", Name: "web", Uid: "u",
			NetnsPath: "/run/netns/x", CgroupPath: "/kubepods/podu", CgroupInode: 77, NetnsCookie: 88, Ready: true,
			State: "live", Ifindex: 5, EnrolledUnixSeconds: 1700000000,
			Links: []*apiv1.Link{
				{Hook: "connect4", Kind: "cgroup", LinkId: 1, ProgId: 9, ProgTag: "abcd", State: "live", CgroupId: 77},
				{Hook: "tc_egress", Kind: "clsact", ProgId: 9, ProgTag: "abcd", State: "live", Ifindex: 5},
			},
		},
		{
			ContainerId: "c1", Network: "net", IfName: "eth0", Namespace: "shop", Name: "web", Uid: "u",
			NetnsPath: "/run/netns/x", CgroupPath: "/kubepods/podu", CgroupInode: 77, NetnsCookie: 88, Ready: true, Owner: true,
			State: "live", Ifindex: 3, EnrolledUnixSeconds: 1700000000,
			Links: []*apiv1.Link{
				{Hook: "connect4", Kind: "cgroup", LinkId: 1, ProgId: 9, ProgTag: "abcd", State: "live", CgroupId: 77},
				{Hook: "tc_egress", Kind: "tcx", LinkId: 2, ProgId: 9, ProgTag: "abcd", State: "live", Ifindex: 3},
			},
		},
	}}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	// connect4 of the shared cgroup, tcx, the filter; and the severed one.
	counts := &apiv1.PodCounts{Live: 2, Severed: 1, Drift: 1, LinksLive: 3, LinksSevered: 1}
	if got := podCounts(got); !proto.Equal(got, counts) {
		t.Errorf("counts %v, want %v", got, counts)
	}
}

func TestPodStates(t *testing.T) {
	whole := netns.Pod{Ready: true, Links: []netns.Link{link("connect4", 1, 7, 0)}}
	draining := whole
	draining.Draining = true
	drifted := draining
	drifted.Drift = []string{"tc_egress is not attached"}
	severed := drifted
	severed.Links = []netns.Link{link("connect4", 2, 0, 0)}
	got := PodsOf([]netns.Pod{whole, draining, drifted, severed}, nil, nil)
	for i, want := range []string{"live", "draining", "drift", "severed"} {
		if got.Pods[i].State != want {
			t.Errorf("pod %d is %s, want %s", i, got.Pods[i].State, want)
		}
	}
	counts := podCounts(got)
	if counts.Live != 1 || counts.Draining != 1 || counts.Drift != 1 || counts.Severed != 1 {
		t.Errorf("counted %+v, want one of each", counts)
	}
}
