//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * No programs: the maps alone, from which the loader creates them and bpf2go
 * generates Go's types.
 */
#include "maps_http.h"
#include "older.h"

/* Types that no map mentions: a pointer keeps them in the BTF. */
struct socket_record *keep_socket_record __attribute__((unused));
enum phase *keep_phase __attribute__((unused));
enum kind *keep_kind __attribute__((unused));
enum policy *keep_policy __attribute__((unused));
enum reason *keep_reason __attribute__((unused));
enum name_kind *keep_name_kind __attribute__((unused));
enum host_kind *keep_host_kind __attribute__((unused));
enum route_kind *keep_route_kind __attribute__((unused));
enum hash_kind *keep_hash_kind __attribute__((unused));
enum part_kind *keep_part_kind __attribute__((unused));
enum leg_state *keep_leg_state __attribute__((unused));
enum frame_kind *keep_frame_kind __attribute__((unused));
enum flow_state *keep_flow_state __attribute__((unused));
enum pin *keep_pin __attribute__((unused));
enum event *keep_event __attribute__((unused));
enum verdict *keep_verdict __attribute__((unused));
struct trace *keep_trace __attribute__((unused));

char _license[] SEC("license") = "Dual BSD/GPL";
