/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* work.h: what one packet needs beside its flow, and what is found out on the way. */
#ifndef KM_WORK_H
#define KM_WORK_H

#include "craft.h"
#include "flow.h"
#include "plain.h"

/* What is to be done with a head. */
struct decision_of {
	__u32 kind;  /* enum head_kind */
	__u32 reply; /* to be answered with it; 0: forward */
	__u32 cluster;
	__u32 hash;
	__u32 route; /* its id */
	__u32 vhost;
	__u32 rule;
	__u32 head; /* C: where it begins */
	__u32 have; /* bytes from there on that are in scratch */
	__u32 head_len;
	__u64 length; /* of the body */
	__u8 chunked;
	__u8 is_head;
	__u8 method_done;
	__u8 close; /* no other message follows */
	__u8 has_length;
	__u8 hashed; /* hash is the route's; else it is to be drawn */
	__u16 status;
};

struct answer {
	__u32 id;
	__u32 ack;     /* C: what the client is told to have been received */
	__u8 is_head;  /* the request's method is HEAD */
	__u8 fin;      /* the connection ends */
	__u8 repeated; /* it has been counted */
	__u8 pad;
	__u32 route;
};

/* Whether a leg to a choice is counted. */
#define KM_LIMIT_COUNT 1 /* it is to be */
#define KM_LIMIT_COUNTED 2

/* An endpoint that was chosen. */
struct choice_of {
	__be32 addr[4];
	__be16 port;
	__u8 counted; /* its cluster's policy asks for requests that run */
	__u8 limited; /* KM_LIMIT_*: its cluster bounds its connections */
	__u32 endpoint;
	__u32 isn;   /* C: the client's bytes begin behind it */
	__u32 tsval; /* of the SYN; 0: without timestamps */
};

/* The packet as it came, for the trace. */
struct trace_mark {
	__u32 seq;
	__u32 ack;
	__u32 len;
	__u8 flags;
	__u8 leg;
	__u16 window;
};

/*
 * Scratch of one program; nothing in it outlives a packet. Much of it would be on the
 * stack, were that not of 512 bytes for all calls together.
 */
struct work {
	struct packet packet;
	struct trace_mark mark;
	struct vhost vhost; /* whose program ran last */
	struct decision_of decision;
	struct answer answer;
	struct choice_of choice;
	struct plain plain;
	struct craft craft;
	struct machine machine;
	struct candidates found;
	struct long_host_key host;
	__u8 host_room[8];        /* written to by the word */
	__u8 bytes[KM_TWO_HEADS]; /* a head */
};

/*
 * One element per program: they may be nested on a CPU, since a packet sent at ingress
 * passes egress, but our own packets leave that before they touch scratch.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct work);
} km_work SEC(".maps");

static __always_inline struct work *work_at(__u32 i)
{
	return bpf_map_lookup_elem(&km_work, &i);
}

static __always_inline struct work *work_of(const struct packet *p)
{
	__u32 i = p->egress & 1;

	return bpf_map_lookup_elem(&km_work, &i);
}

/* Frees the packet, and lets TCP believe that it was sent (a drop would slow it down). */
static __always_inline int swallow(void)
{
	return bpf_redirect(0, 0);
}

#endif
