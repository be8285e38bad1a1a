// SPDX-License-Identifier: Apache-2.0

// Package bpf is the kernel half of Kmesh and what loads it: C by hook and by
// concern, the objects that bpf2go made of it, and typed access to the pinned maps
// and programs.
//
// Everything that traffic needs is pinned below one bpffs directory with an ABI
// number, so that the helper may die at any moment, and the plugin enrols a pod
// with nothing running:
//
//	<bpffs>/v1/maps/<map>     the orchestration maps, counters, the state word
//	<bpffs>/v1/progs/<hook>   one program per hook
//
// The invariant: within one ABI the layout of abi.h does not change, so new
// programs re-use the maps of old ones and running traffic does not notice.
//
// Another layout is pinned beside it, and its programs never read these maps. They take
// the pods over when they have a configuration (TakeOver), and hand on what is not of
// their layout to the older programs, by a tail call (older.h), until those have no flow
// left (Retire) and no pod of that time is there (Remove). A tail call, and not a second
// program on each hook of each pod: it is one write for the whole node, a pod keeps one
// link per hook, and the cgroup's hooks need it as well. Ports of legs are shared out, so
// that no two layouts make the same connection; counters are added up.
//
// Not handed over: the configuration of flows that are open (it stays as it was), the
// endpoint of an unconnected UDP socket (it chooses anew), counts of what is open now
// (they begin at 0), marks of endpoints that failed lately. A socket that was connected
// before and connects anew to an address that is nobody's may be taken for what it was,
// for two rounds of the helper.
// Package bpf imports nothing of ours; who may write which map is said in maps.h.
package bpf
