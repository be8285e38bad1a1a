/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * udp.h: what a UDP socket remembers. A destination keeps its endpoint as long as
 * the endpoint may be chosen; a removed one is replaced at the next datagram.
 */
#ifndef KM_UDP_H
#define KM_UDP_H

#include "sockaddr.h"

/* The association of this socket with a VIP, NULL if it has none. */
static __always_inline struct udp_peer *peer_by_vip(struct udp_peers *all,
						    const struct frontend_key *vip)
{
	for (int i = 0; i < KM_UDP_PEERS; i++) {
		struct udp_peer *p = &all->peers[i];

		if (p->family == vip->family && p->vip_port == vip->port &&
		    same_addr(p->vip, vip->addr))
			return p;
	}
	return NULL;
}

/* The association whose endpoint a datagram came from, the newest first. */
static __always_inline struct udp_peer *peer_by_source(struct udp_peers *all,
						       const struct frontend_key *src)
{
	__u32 newest = all->next + KM_UDP_PEERS - 1;

	for (int i = 0; i < KM_UDP_PEERS; i++) {
		struct udp_peer *p = &all->peers[(newest - i) % KM_UDP_PEERS];

		if (p->family == src->family && p->peer_port == src->port &&
		    same_addr(p->peer, src->addr))
			return p;
	}
	return NULL;
}

/* Remembers a choice: in place of the VIP's old one, else of the oldest. */
static __always_inline void remember_peer(struct udp_peers *all, const struct frontend_key *vip,
					  const struct choice *c)
{
	struct udp_peer *p = peer_by_vip(all, vip);

	if (!p) {
		p = &all->peers[all->next % KM_UDP_PEERS];
		all->next++;
	}
	__builtin_memcpy(p->vip, vip->addr, sizeof(p->vip));
	__builtin_memcpy(p->peer, c->addr, sizeof(p->peer));
	p->vip_port = vip->port;
	p->peer_port = c->port;
	p->family = vip->family;
	p->service = c->service;
	p->endpoint = c->endpoint;
}

static __always_inline void count_flow(const struct choice *c)
{
	struct stats *st = stats_make(c->service, c->cluster);

	if (st)
		__sync_fetch_and_add(&st->flows, 1);
}

#endif
