/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * translate.h: a segment between the client's connection and a leg: addresses,
 * ports, sequence numbers, SACK blocks, window. The payload is not touched.
 */
#ifndef KM_TRANSLATE_H
#define KM_TRANSLATE_H

#include "kernel.h"
#include "packet.h"

#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_MSS 2
#define OPTION_SCALE 3
#define OPTION_SACK_OK 4
#define OPTION_SACK 5
#define OPTION_TIMESTAMPS 8

/*
 * Whether the 20 bytes of a SYN's options, or of its answer's, are what Linux sends:
 * MSS, SACK permitted, timestamps, no operation, window scale.
 */
static __always_inline bool are_usual(const __u8 *o)
{
	return o[0] == OPTION_MSS && o[1] == 4 && o[4] == OPTION_SACK_OK && o[5] == 2 &&
	       o[6] == OPTION_TIMESTAMPS && o[7] == 10 && o[16] == OPTION_NOP &&
	       o[17] == OPTION_SCALE && o[18] == 3;
}

/* The part of a TCP header that is rewritten: its first 18 bytes. */
struct tcp_start {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
	__be16 window;
	__be16 check;
} __attribute__((packed, aligned(2)));

/* What lies in one piece before it, so that one store does for all. */
struct headers4 {
	__be16 check;
	__be32 src;
	__be32 dst;
	struct tcp_start tcp;
} __attribute__((packed, aligned(2)));

struct headers6 {
	__be32 src[4];
	__be32 dst[4];
	struct tcp_start tcp;
} __attribute__((packed, aligned(2)));

struct translation {
	struct packet *p;
	__be32 addr[4];  /* the new one: of the destination at egress, of the source at ingress */
	__be32 other[4]; /* the other one, which changes on a leg to the pod itself */
	__be16 sport;
	__be16 dport;
	__u32 seq; /* to be added */
	__u32 ack;
	__u16 window;
	__u8 flags;
};

/* The checksum after a change, where the field alone holds it. */
static __always_inline __be16 new_check(__be16 check, bool partial, __u64 header, __u64 pseudo)
{
	if (partial)
		return fold16(check + pseudo);
	return ~fold16(header + pseudo + (__u32) ~(__u32)check);
}

/*
 * Rewrites the header: one store, and no direct packet write (at egress one of those
 * makes the kernel copy every packet that the program sees).
 */
static __always_inline void translate(struct __sk_buff *skb, const struct translation *t,
				      bool egress)
{
	struct packet *p = t->p;
	__u32 seq = p->seq + t->seq, ack = p->flags & TCP_ACK ? p->ack + t->ack : p->ack;
	const __be32 *src = egress ? t->other : t->addr, *dst = egress ? t->addr : t->other;
	__u64 header, pseudo;
	__u8 state = checksum_state(skb);
	struct tcp_start tcp = {
		.sport = t->sport,
		.dport = t->dport,
		.seq = bpf_htonl(seq),
		.ack = bpf_htonl(ack),
		.offset = p->offset,
		.flags = t->flags,
		.window = bpf_htons(t->window),
		.check = p->check,
	};

	pseudo = sum_addr(src) + sum_addr(dst) + minus_addr(p->src) + minus_addr(p->dst);
	header = (__u64)t->sport + t->dport + tcp.seq + tcp.ack + tcp.window + bpf_htons(t->flags) +
		 (__u32) ~(__u32)p->sport + (__u32) ~(__u32)p->dport + (__u32)~bpf_htonl(p->seq) +
		 (__u32)~bpf_htonl(p->ack) + (__u32) ~(__u32)bpf_htons(p->window) +
		 (__u32) ~(__u32)bpf_htons(p->flags);
	if (state != CHECKSUM_COMPLETE)
		tcp.check = new_check(p->check, state == CHECKSUM_PARTIAL, header, pseudo);
	if (p->family == 4) {
		struct headers4 h = {
			.check = ~fold16(pseudo + (__u32) ~(__u32)p->ip_check),
			.src = src[0],
			.dst = dst[0],
			.tcp = tcp,
		};

		bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, check), &h, sizeof(h),
				    0);
	} else {
		struct headers6 h = {.tcp = tcp};

		__builtin_memcpy(h.src, src, 16);
		__builtin_memcpy(h.dst, dst, 16);
		bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), &h, sizeof(h),
				    0);
	}
	if (state == CHECKSUM_COMPLETE)
		replace_checksum(skb, p, header, pseudo);
}

/* The Ethernet addresses of a packet that turns round. */
static __always_inline void swap_link(struct __sk_buff *skb)
{
	__u8 macs[18];

	if (bpf_skb_load_bytes(skb, 0, macs, 12))
		return;
	__builtin_memcpy(macs + 12, macs, 6); /* dst, src, dst: the last two are it */
	bpf_skb_store_bytes(skb, 0, macs + 6, 12, 0);
}

struct sack_walk {
	struct __sk_buff *skb;
	__u32 at;  /* offset of the next option */
	__u32 end; /* of the header */
	__u32 add;
	__u32 check; /* offset of the checksum */
};

static long sack_option(__u32 i, struct sack_walk *w)
{
	__u8 option[2] = {};

	if (w->at + 2 > w->end || bpf_skb_load_bytes(w->skb, w->at, option, 2))
		return 1;
	if (option[0] == OPTION_END)
		return 1;
	if (option[0] == OPTION_NOP) {
		w->at++;
		return 0;
	}
	if (option[1] < 2)
		return 1;
	if (option[0] == OPTION_SACK) {
		/* Sums are of 16-bit words: a block at an odd offset is swapped in them. */
		bool odd = w->at & 1;

		for (int k = 0; k < 8; k++) {
			__u32 at = w->at + 2 + 4 * k;
			__be32 old, new;
			__u64 diff;

			if (4 * k + 6 > option[1] || at + 4 > w->end ||
			    bpf_skb_load_bytes(w->skb, at, &old, 4))
				break;
			new = bpf_htonl(bpf_ntohl(old) + w->add);
			bpf_skb_store_bytes(w->skb, at, &new, 4, 0);
			diff = fold16((__u64) new + (__u32)~old);
			if (odd)
				diff = bpf_htons(diff);
			bpf_l4_csum_replace(w->skb, w->check, 0, diff, 0);
		}
		return 1;
	}
	w->at += option[1];
	return 0;
}

/* Moves the SACK blocks of a header (RFC 2018) by add. */
static __noinline int translate_sack(struct __sk_buff *skb, struct packet *p, __u32 add)
{
	struct sack_walk w = {
		.skb = skb,
		.at = p->l4 + 20,
		.end = p->l4 + p->tcp_len,
		.add = add,
		.check = p->l4 + offsetof(struct tcphdr, check),
	};

	bpf_loop(KM_TCP_OPTIONS, sack_option, &w, 0);
	reread_checksums(skb, p);
	return 0;
}

#endif
