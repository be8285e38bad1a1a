/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * ports.h: the range of ports that legs come from, and who else was seen to use it.
 * Nearly nobody does, so that nearly nobody is asked.
 */
#ifndef KM_PORTS_H
#define KM_PORTS_H

#include "maps_http.h"

#include <bpf/bpf_endian.h>

static __always_inline bool is_leg_port(__be16 port)
{
	return (port & bpf_htons(KM_LEG_PORT_MASK)) == bpf_htons(KM_LEG_PORT_BASE);
}

static __always_inline struct limits *limits(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&km_limits, &zero);
}

/* A socket of a pod has a port of the range: a leg looks whether its own is one's. */
static __always_inline void share_ports(void)
{
	struct limits *l = limits();

	if (l)
		l->shared = 1;
}

/* A flow leads to a port of the range, or to the pod itself: what is sent to one may be its. */
static __always_inline void send_outward(void)
{
	struct limits *l = limits();

	if (l)
		l->outward = 1;
}

#endif
