//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * head.bpf.c: the machine of table.h by itself, for BPF_PROG_TEST_RUN: it is held
 * against its Go mirror, and measured, without a packet; and so is plain.h. Heads,
 * programs and results are in maps that the tests map into their memory.
 */
#include "plain.h"

#include <linux/pkt_cls.h>

/* A piece of a head to read. */
struct head_piece {
	__u32 program; /* its offset in the slab */
	__u32 first;   /* position of bytes[0] */
	__u32 end;     /* of what is there */
	__u32 fresh;   /* begin a new head */
	__u8 bytes[KM_HEAD_BUFFER];
};

struct head_result {
	struct machine machine;
	struct candidates found;
};

struct head_slab {
	__u8 bytes[KM_SLAB];
};

/* What plain.h says of a piece. */
struct plain_result {
	struct plain plain;
	__u32 len; /* of the head; 0: it is for the table */
	__u32 pad;
};

#define KM_PIECES 1024

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct head_slab);
} head_slabs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KM_PIECES);
	__type(key, __u32);
	__type(value, struct head_piece);
} head_pieces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct head_result);
} head_results SEC(".maps");

/* How many pieces there are to take in turn, and the next one. */
struct head_turn {
	__u32 pieces;
	__u32 next;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct head_turn);
} head_turns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KM_PIECES);
	__type(key, __u32);
	__type(value, struct plain_result);
} plain_results SEC(".maps");

/* The number of the piece whose turn it is. */
static __always_inline __u32 take_turn(struct head_turn *turn)
{
	__u32 at = turn->next;

	turn->next = at + 1 < turn->pieces ? at + 1 : 0;
	return at;
}

SEC("tc")
int head_run(struct __sk_buff *skb)
{
	__u32 zero = 0, at = 0;
	struct head_result *result = bpf_map_lookup_elem(&head_results, &zero);
	struct head_slab *slab = bpf_map_lookup_elem(&head_slabs, &zero);
	struct head_turn *turn = bpf_map_lookup_elem(&head_turns, &zero);
	struct head_piece *piece;

	if (!result || !slab || !turn)
		return TC_ACT_SHOT;
	at = take_turn(turn);
	piece = bpf_map_lookup_elem(&head_pieces, &at);
	if (!piece)
		return TC_ACT_SHOT;
	if (piece->fresh) {
		begin_head(&result->machine, slab->bytes, piece->program);
		result->found.summary = 0;
	}
	read_head(&result->machine, &result->found, slab->bytes, piece->program, piece->bytes,
		  piece->first, piece->end);
	return TC_ACT_OK;
}

SEC("tc")
int plain_run(struct __sk_buff *skb)
{
	__u32 zero = 0, at;
	struct head_turn *turn = bpf_map_lookup_elem(&head_turns, &zero);
	struct plain_result *result;
	struct head_piece *piece;

	if (!turn)
		return TC_ACT_SHOT;
	at = take_turn(turn);
	piece = bpf_map_lookup_elem(&head_pieces, &at);
	result = bpf_map_lookup_elem(&plain_results, &at);
	if (!piece || !result)
		return TC_ACT_SHOT;
	result->len = read_plain(&result->plain, piece->bytes, piece->end);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";
