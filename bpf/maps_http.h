/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * maps_http.h: the maps of the L7 path, as maps.h those of L4. Tables that are
 * written in extents are arrays in the helper's memory; a descriptor, replaced by
 * one hash update, leads to an extent.
 */
#ifndef KM_MAPS_HTTP_H
#define KM_MAPS_HTTP_H

#include "maps.h"
#include "program.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct http);
} km_http SEC(".maps");

/* The cluster to guess for a frontend of a listener that has many: by address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct frontend_key);
	__type(value, __u32);
} km_guesses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct host_key);
	__type(value, __u32);
} km_hosts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct long_host_key);
	__type(value, __u32);
} km_long_hosts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct vhost);
} km_vhosts SEC(".maps");

struct slab {
	__u8 bytes[KM_SLAB];
};

/* Compiled virtual hosts, each once however many have the same conditions. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct slab);
} km_slabs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct route);
} km_routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, struct share);
} km_shares SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct reply);
} km_replies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* programs count in it while the helper writes */
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct limits);
} km_limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 32768);
	__type(key, __u32);
	__type(value, struct flow);
} km_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct flow_key);
	__type(value, struct flow_ref);
} km_tuples SEC(".maps");

/* Live and ended legs; an entry is replaced when its port is used anew. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct leg_key);
	__type(value, struct leg_ref);
} km_legs SEC(".maps");

/*
 * By a hash of the leg's tuple; a later one takes the place of an earlier one. What is
 * lost by that costs a challenge ACK: a round trip.
 */
#define KM_TOMBSTONES 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KM_TOMBSTONES);
	__type(key, __u32);
	__type(value, struct tombstone);
} km_tombstones SEC(".maps");

/*
 * Flows of which nothing more is expected: both ends have ended, and know it of each
 * other. The last one is used next, since its memory is the nearest.
 */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 32768);
	__type(value, __u32);
} km_over SEC(".maps");

/* Flows that ended otherwise, oldest first. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 32768);
	__type(value, __u32);
} km_ended SEC(".maps");

/* Flows that are open, by pod. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} km_quotas SEC(".maps");

/* A head, and room behind it, so that no sum of two bounds leads outside. */
#define KM_TWO_HEADS (2 * KM_MAX_HEAD + 64)

/* Bytes that wait: a head that is not whole, a request whose leg is being opened. */
struct hold {
	struct flow_ref owner;
	__u8 bytes[KM_TWO_HEADS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, struct hold);
} km_holds SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 512);
	__type(value, __u32);
} km_free_holds SEC(".maps");

/* Endpoints that refused or did not answer, until when (ns) to prefer others. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} km_marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct request_key);
	__type(value, struct request_stats);
} km_requests SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KM_EVENTS);
	__type(key, __u32);
	__type(value, __u64);
} km_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 262144);
} km_trace SEC(".maps");

#endif
