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
// Package bpf imports nothing of ours; who may write which map is said in maps.h.
package bpf
