//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * gate_up, gate_down: a bad network between a pod and its node. They are attached to
 * the node's end of the pod's veth, outside of everything that a pod runs, and count,
 * drop, swap or spoil the TCP packets that a rule describes. "Up" is from the pod.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../../../bpf/bounds.h"

#define TCX_NEXT (-1)
#define TCX_DROP 2

#define RULES 64        /* of one direction */
#define SEEN 0x67617465 /* mark of a packet that the gate itself sends */
#define WHOLE 1514      /* longest packet that is swapped */
#define BUSY (~0u)      /* in place of a length: another CPU is at the packet that waits */
#define TCP_RST 0x04

enum action {
	ACT_COUNT = 0,
	ACT_DROP = 1,
	ACT_SWAP = 2,  /* with the next packet of the same rule */
	ACT_SPOIL = 3, /* the last byte is another one, and the checksum is not told */
};

enum payload {
	PAYLOAD_ANY = 0,
	PAYLOAD_NONE = 1,
	PAYLOAD_SOME = 2,
	PAYLOAD_SUPER = 3,   /* several segments in one packet (GSO) */
	PAYLOAD_STAMPED = 4, /* timestamps (RFC 7323), where Linux puts them */
};

struct rule {
	__u8 used;
	__u8 action;
	__u8 payload;
	__u8 mask; /* of the TCP flags */
	__u8 value;
	__u8 pad;
	__u16 port;   /* of the server, 0: any */
	__u32 chance; /* of 2^32, 0: always */
	__u32 skip;   /* so many pass first */
	__u32 limit;  /* then at most so many are acted on, 0: all */
	__u32 held;   /* bytes of the packet that waits to be swapped */
	__u64 matched;
	__u64 acted;
	__u8 packet[WHOLE + 6];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * RULES);
	__type(key, __u32);
	__type(value, struct rule);
} rules SEC(".maps");

struct packet {
	__u16 server;
	__u8 flags;
	__u8 kinds; /* bits: enum payload */
};

/* parse returns 0 for a TCP packet without extension headers. */
static __always_inline int parse(struct __sk_buff *skb, int up, struct packet *p)
{
	__u8 b[4];
	__u32 ip = sizeof(struct ethhdr), tcp, end;

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		if (bpf_skb_load_bytes(skb, ip, b, 4))
			return -1;
		tcp = ip + (b[0] & 15) * 4;
		end = ip + (b[2] << 8 | b[3]);
		if (bpf_skb_load_bytes(skb, ip + 9, b, 1) || b[0] != IPPROTO_TCP)
			return -1;
		break;
	case bpf_htons(ETH_P_IPV6):
		if (bpf_skb_load_bytes(skb, ip + 4, b, 3) || b[2] != IPPROTO_TCP)
			return -1;
		tcp = ip + 40;
		end = tcp + (b[0] << 8 | b[1]);
		break;
	default:
		return -1;
	}
	if (bpf_skb_load_bytes(skb, tcp + (up ? 2 : 0), b, 2))
		return -1;
	p->server = b[0] << 8 | b[1];
	if (bpf_skb_load_bytes(skb, tcp + 12, b, 2))
		return -1;
	p->flags = b[1];
	p->kinds = 1 << PAYLOAD_ANY;
	/* A length of 0 is that of a packet longer than 64 KiB. */
	p->kinds |= 1 << (tcp + (b[0] >> 4) * 4 < end || end <= tcp ? PAYLOAD_SOME : PAYLOAD_NONE);
	if (skb->gso_segs > 1)
		p->kinds |= 1 << PAYLOAD_SUPER;
	if (b[0] >> 4 >= 8 && !bpf_skb_load_bytes(skb, tcp + 20, b, 4) && b[0] == 1 && b[1] == 1 &&
	    b[2] == 8 && b[3] == 10)
		p->kinds |= 1 << PAYLOAD_STAMPED;
	return 0;
}

static __always_inline int fits(const struct rule *r, const struct packet *p)
{
	if (!r->used || (r->port && r->port != p->server) || (p->flags & r->mask) != r->value)
		return 0;
	return p->kinds >> (r->payload & 7) & 1;
}

/*
 * swap sends this packet, then the one that waits; or makes this one wait. A packet of
 * several segments is too long to wait, but it overtakes one that does.
 */
static __always_inline int swap(struct __sk_buff *skb, struct rule *r, int up)
{
	__u32 len = skb->len, held = r->held;

	if (held == BUSY || __sync_val_compare_and_swap(&r->held, held, BUSY) != held)
		return TCX_NEXT;
	if (!held) {
		if (!is_between(&len, 1, WHOLE) || skb->gso_segs > 1 ||
		    bpf_skb_load_bytes(skb, 0, r->packet, len)) {
			r->held = 0;
			return TCX_NEXT;
		}
		r->held = len;
		return TCX_DROP;
	}
	skb->mark = SEEN;
	if (bpf_clone_redirect(skb, skb->ifindex, up ? BPF_F_INGRESS : 0)) {
		r->held = held;
		return TCX_NEXT;
	}
	len = held;
	if (!is_between(&len, 1, WHOLE) || bpf_skb_change_tail(skb, len, 0) ||
	    bpf_skb_store_bytes(skb, 0, r->packet, len, 0)) {
		r->held = 0;
		return TCX_DROP;
	}
	r->held = 0;
	return TCX_NEXT;
}

static __always_inline void spoil(struct __sk_buff *skb)
{
	__u32 last = skb->len - 1;
	__u8 b;

	if (bpf_skb_load_bytes(skb, last, &b, 1))
		return;
	b ^= 0xff;
	bpf_skb_store_bytes(skb, last, &b, 1, 0);
}

static __always_inline int gate(struct __sk_buff *skb, int up)
{
	struct packet p;
	struct rule *r;
	__u32 i, key;

	if (skb->mark == SEEN || parse(skb, up, &p))
		return TCX_NEXT;
	for (i = 0; i < RULES; i++) {
		key = up ? i : RULES + i;
		r = bpf_map_lookup_elem(&rules, &key);
		if (!r || !fits(r, &p))
			continue;
		if (__sync_fetch_and_add(&r->matched, 1) < r->skip ||
		    (r->limit && r->acted >= r->limit) ||
		    (r->chance && bpf_get_prandom_u32() >= r->chance))
			continue;
		__sync_fetch_and_add(&r->acted, 1);
		if (r->action == ACT_DROP)
			return TCX_DROP;
		/* A reset's checksum is whole, those of sockets are finished by the device. */
		if (r->action == ACT_SWAP)
			return p.flags & TCP_RST ? TCX_NEXT : swap(skb, r, up);
		if (r->action == ACT_SPOIL)
			spoil(skb);
	}
	return TCX_NEXT;
}

SEC("tc")
int gate_up(struct __sk_buff *skb)
{
	return gate(skb, 1);
}

SEC("tc")
int gate_down(struct __sk_buff *skb)
{
	return gate(skb, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
