/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * craft.h: packets of our own. There is no way to make one from nothing, so each is
 * made out of the packet at hand, which is lost, or is followed by its clones.
 */
#ifndef KM_CRAFT_H
#define KM_CRAFT_H

#include "bounds.h"
#include "translate.h"

/*
 * Payload of one made segment: fits every path that carries IPv6's 1,500 bytes, with
 * options. Longer texts take several.
 */
#define KM_SEGMENT 1400
#define KM_SUM_PIECE 512 /* bpf_csum_diff takes no more before Linux 6.13 */
#define KM_SUM_PIECES 3  /* KM_SEGMENT and a header */

enum link {
	LINK_KEEP,
	LINK_SWAP, /* back to where it came from */
	LINK_TO,   /* to mac, from the same source */
};

/* What a packet shall become. Addresses are as it is sent. */
struct craft {
	__be32 src[4];
	__be32 dst[4];
	struct tcp_start tcp; /* offset is filled in */
	__u8 link;            /* enum link: the Ethernet addresses */
	__u8 options_len;
	__u16 len; /* payload */
	__u8 mac[6];
	__u8 pad[2];
	/* Scratch. */
	struct ipv6hdr ip6;
	struct iphdr ip4;
	__u8 macs[18];
	__u8 pad2[2];
	__u8 bytes[KM_SUM_PIECES * KM_SUM_PIECE];
};

/* Where the text for bytes comes from: behind the header that craft_packet writes. */
static __always_inline __u32 craft_room(const struct craft *c)
{
	return 20 + (c->options_len & 63);
}

static __always_inline __u64 sum_bytes(const __u8 *bytes, __u32 len)
{
	__u64 sum = 0;

	for (int i = 0; i < KM_SUM_PIECES; i++) {
		__u32 n = len > KM_SUM_PIECE ? KM_SUM_PIECE : len;

		if (!is_between(&n, 1, KM_SUM_PIECE))
			break;
		sum += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)(bytes + i * KM_SUM_PIECE), n, 0);
		len -= n;
	}
	return sum;
}

/*
 * Makes skb the packet of c. p describes skb before and after. Whatever the state of
 * the checksum was, the difference comes out right: it counts the old packet as sum 0,
 * which holds for every valid one (RFC 1071), and is ignored where hardware or the
 * receiver is to complete it.
 */
__noinline int craft_packet(struct __sk_buff *skb, struct packet *p, struct craft *c)
{
	__u32 options, len, room, tcp_len;
	__u64 header, pseudo, zero = 0;
	struct tcphdr *th;
	__be16 check = 0;

	if (!p || !c)
		return -1;
	options = c->options_len & 60;
	len = c->len;
	room = 20 + options;
	tcp_len = room + len;
	th = (void *)c->bytes;
	if (len > KM_SEGMENT || options > KM_TCP_OPTIONS)
		return -1;
	pseudo = sum_addr(p->src) + sum_addr(p->dst) + bpf_htons(IPPROTO_TCP) +
		 bpf_htons(p->tcp_len + p->len);
	bpf_skb_load_bytes(skb, p->l4 + offsetof(struct tcphdr, check), &check, 2);
	if (bpf_skb_change_tail(skb, p->l4 + tcp_len, 0))
		return -1;
	c->tcp.offset = room << 2;
	__builtin_memcpy(c->bytes, &c->tcp, 16);
	th->check = 0;
	th->urg_ptr = 0;
	/* The sum is of whole words. */
	if (tcp_len & 3) {
		__u32 at = tcp_len & 2047;

		if (at > sizeof(c->bytes) - 4)
			return -1;
		__builtin_memcpy(c->bytes + at, &zero, 4);
	}
	header = sum_bytes(c->bytes, (tcp_len + 3) & ~3U) + pseudo + check;
	th->check = check;
	if (!is_between(&tcp_len, 20, sizeof(c->bytes)))
		return -1;
	bpf_skb_store_bytes(skb, p->l4, c->bytes, tcp_len, 0);
	pseudo = sum_addr(c->src) + sum_addr(c->dst) + bpf_htons(IPPROTO_TCP) + bpf_htons(tcp_len) +
		 (__u32)~fold32(pseudo);
	replace_checksum(skb, p, header, pseudo);
	if (p->family == 4) {
		struct iphdr *ip = &c->ip4;
		__u64 sum = 0;

		__builtin_memset(ip, 0, sizeof(*ip));
		*(__u8 *)ip = 0x45;
		ip->tot_len = bpf_htons(20 + tcp_len);
		ip->frag_off = bpf_htons(0x4000);
		ip->ttl = 64;
		ip->protocol = IPPROTO_TCP;
		ip->saddr = c->src[0];
		ip->daddr = c->dst[0];
		for (int i = 0; i < 5; i++)
			sum += ((__u32 *)ip)[i];
		ip->check = ~fold16(sum);
		bpf_skb_store_bytes(skb, ETH_HLEN, ip, sizeof(*ip), 0);
	} else {
		struct ipv6hdr *ip = &c->ip6;

		__builtin_memset(ip, 0, sizeof(*ip));
		*(__u8 *)ip = 0x60;
		ip->payload_len = bpf_htons(tcp_len);
		ip->nexthdr = IPPROTO_TCP;
		ip->hop_limit = 64;
		__builtin_memcpy(&ip->saddr, c->src, 16);
		__builtin_memcpy(&ip->daddr, c->dst, 16);
		bpf_skb_store_bytes(skb, ETH_HLEN, ip, sizeof(*ip), 0);
	}
	if (c->link == LINK_TO) {
		bpf_skb_store_bytes(skb, 0, c->mac, 6, 0);
	} else if (c->link == LINK_SWAP && !bpf_skb_load_bytes(skb, 0, c->macs, 12)) {
		__builtin_memcpy(c->macs + 12, c->macs, 6); /* dst, src, dst: the last two are it */
		bpf_skb_store_bytes(skb, 0, c->macs + 6, 12, 0);
		c->link = LINK_KEEP; /* a second packet out of this one goes the same way */
	}
	__builtin_memcpy(p->src, c->src, 16);
	__builtin_memcpy(p->dst, c->dst, 16);
	p->tcp_len = room;
	p->offset = room << 2;
	p->len = len;
	p->sport = c->tcp.sport;
	p->dport = c->tcp.dport;
	p->flags = c->tcp.flags;
	p->seq = bpf_ntohl(c->tcp.seq);
	p->ack = bpf_ntohl(c->tcp.ack);
	return 0;
}

/* Copies text into the payload of c, at most KM_SEGMENT bytes. */
static __always_inline void craft_payload(struct craft *c, const void *text, __u32 len)
{
	__u32 at = craft_room(c);

	if (len > KM_SEGMENT)
		len = KM_SEGMENT;
	c->len = len;
	if (is_between(&len, 1, KM_SEGMENT))
		bpf_probe_read_kernel(c->bytes + at, len, text);
}

#endif
