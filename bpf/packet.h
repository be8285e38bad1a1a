/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * packet.h: a TCP segment over IPv4 without options, or over IPv6 without extension
 * headers, on Ethernet; and its checksum arithmetic (RFC 1071).
 */
#ifndef KM_PACKET_H
#define KM_PACKET_H

#include "ports.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>

#define TCX_NEXT (-1) /* TC_ACT_UNSPEC on clsact: go on with the next filter */
#define TCX_DROP 2

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_PSH 8
#define TCP_ACK 16
#define TCP_URG 32
#define TCP_ECE 64
#define TCP_CWR 128

#define IP_FRAGMENT bpf_htons(0x3fff) /* more fragments, or an offset */

struct packet {
	__u8 family;
	__u8 flags;
	__u8 offset;  /* byte 12 of the TCP header */
	__u8 tcp_len; /* of the header */
	__u16 window;
	__u16 l4; /* offset of the TCP header */
	__u8 egress;
	__u8 clear; /* flags that do not go on */
	__be16 check;
	__be16 ip_check;
	__u16 pad;
	__u32 seq;
	__u32 ack;
	__u32 len; /* payload */
	__be16 sport;
	__be16 dport;
	__be32 src[4];
	__be32 dst[4];
};

static __always_inline bool before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

static __always_inline void read_tcp(struct packet *p, const struct tcphdr *th, __u32 l4_len)
{
	const __u8 *raw = (const void *)th;

	p->flags = raw[13];
	p->offset = raw[12];
	p->tcp_len = (raw[12] >> 4) * 4;
	p->window = bpf_ntohs(th->window);
	p->seq = bpf_ntohl(th->seq);
	p->ack = bpf_ntohl(th->ack_seq);
	p->check = th->check;
	p->sport = th->source;
	p->dport = th->dest;
	p->len = l4_len - p->tcp_len;
}

/*
 * Whether the ports of a segment already tell that it is foreign: at ingress what does
 * not go to a leg port is, at egress what comes from one is our own packet on its second
 * pass, and, as long as there are legs inward only, what goes to one is an endpoint's
 * answer. Nothing but the headers is looked at, which the kernel has just read: the
 * first touch of any memory of ours would cost more than all the rest.
 */
static __always_inline bool is_foreign_by(const struct tcphdr *th, bool egress, bool inward)
{
	return is_leg_port(egress ? th->source : th->dest) == egress ||
	       (inward && is_leg_port(th->dest));
}

static __always_inline bool is_foreign(struct __sk_buff *skb, bool egress, bool inward)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct tcphdr *th;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;

		th = (void *)(ip + 1);
		return (void *)(th + 1) > end || ip->protocol != IPPROTO_TCP ||
		       is_foreign_by(th, egress, inward);
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + ETH_HLEN;

		th = (void *)(ip + 1);
		return (void *)(th + 1) > end || ip->nexthdr != IPPROTO_TCP ||
		       is_foreign_by(th, egress, inward);
	}
	return true;
}

/* Reads the headers of what is_foreign has passed. false: this path does not handle it. */
static __always_inline bool read_packet(struct __sk_buff *skb, struct packet *p, bool egress)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct tcphdr *th;
	__u32 l4_len;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;

		th = (void *)(ip + 1);
		if ((void *)(th + 1) > end)
			return false;
		if (*(__u8 *)ip != 0x45 || ip->frag_off & IP_FRAGMENT)
			return false;
		p->family = 4;
		p->l4 = ETH_HLEN + sizeof(*ip);
		p->ip_check = ip->check;
		p->src[0] = ip->saddr;
		p->dst[0] = ip->daddr;
		p->src[1] = p->src[2] = p->src[3] = 0;
		p->dst[1] = p->dst[2] = p->dst[3] = 0;
		l4_len = bpf_ntohs(ip->tot_len) - sizeof(*ip);
		if (!ip->tot_len)
			l4_len = skb->len - ETH_HLEN - sizeof(*ip); /* BIG TCP */
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + ETH_HLEN;

		th = (void *)(ip + 1);
		if ((void *)(th + 1) > end)
			return false;
		p->family = 6;
		p->l4 = ETH_HLEN + sizeof(*ip);
		__builtin_memcpy(p->src, &ip->saddr, 16);
		__builtin_memcpy(p->dst, &ip->daddr, 16);
		l4_len = bpf_ntohs(ip->payload_len);
		if (!l4_len)
			l4_len = skb->len - ETH_HLEN - sizeof(*ip);
	} else {
		return false;
	}
	read_tcp(p, th, l4_len);
	p->egress = egress;
	p->clear = TCP_URG; /* the receiver would take the byte out of the stream */
	return p->tcp_len >= sizeof(*th) && p->len < 1 << 20;
}

/* Sums are kept in 64 bits and folded at the end. */
static __always_inline __u32 fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum;
}

static __always_inline __u16 fold16(__u64 sum)
{
	__u32 s = fold32(sum);

	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return s;
}

static __always_inline __u64 sum_addr(const __be32 *a)
{
	return (__u64)a[0] + a[1] + a[2] + a[3];
}

static __always_inline __u64 minus_addr(const __be32 *a)
{
	return (__u64)(__u32)~a[0] + (__u32)~a[1] + (__u32)~a[2] + (__u32)~a[3];
}

/*
 * What a change of the pseudo header is to the checksum. Without BPF_F_IPV6 a kernel
 * that has it gets CHECKSUM_COMPLETE wrong on IPv6; one that has it not refuses it.
 */
#define KM_F_IPV6 (1ULL << 7)

static __noinline int replace_checksum(struct __sk_buff *skb, const struct packet *p, __u64 header,
				       __u64 pseudo)
{
	__u32 at = p->l4 + offsetof(struct tcphdr, check);

	bpf_l4_csum_replace(skb, at, 0, fold32(header), 0);
	if (p->family == 4)
		bpf_l4_csum_replace(skb, at, 0, fold32(pseudo), BPF_F_PSEUDO_HDR);
	else if (bpf_l4_csum_replace(skb, at, 0, fold32(pseudo), BPF_F_PSEUDO_HDR | KM_F_IPV6))
		bpf_l4_csum_replace(skb, at, 0, fold32(pseudo), BPF_F_PSEUDO_HDR);
	return 0;
}

/* The checksums as they are after a helper has changed them. */
static __always_inline void reread_checksums(struct __sk_buff *skb, struct packet *p)
{
	bpf_skb_load_bytes(skb, p->l4 + offsetof(struct tcphdr, check), &p->check, 2);
	if (p->family == 4)
		bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, check), &p->ip_check, 2);
}

#endif
