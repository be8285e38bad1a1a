/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * kernel.h: whose packet it is, read from the kernel's own structures. Offsets are
 * relocated at load (CO-RE).
 */
#ifndef KM_KERNEL_H
#define KM_KERNEL_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct net {
	__u64 net_cookie;
};
struct possible_net {
	struct net *net;
};
typedef struct possible_net possible_net_t;
struct net_device {
	possible_net_t nd_net;
};
struct sk_buff {
	struct net_device *dev;
	__u8 ip_summed : 2;
};
#pragma clang attribute pop

/* What is known of a packet's checksum (linux/skbuff.h). */
#define CHECKSUM_COMPLETE 2 /* the sum of all bytes is with the packet */
#define CHECKSUM_PARTIAL 3  /* the field holds the pseudo header's, the rest is added later */

/* Linux 6.2. The branch that a kernel does not take is removed when it loads the program. */
extern void *bpf_cast_to_kern_ctx(void *) __weak __ksym;

/*
 * The pod that the program is attached in: the cookie of the interface's network
 * namespace. Neither the packet nor its socket could tell: at ingress over a veth
 * the socket is the sending pod's.
 */
static __always_inline __u64 pod_of(struct __sk_buff *skb)
{
	struct sk_buff *kernel;

	if (bpf_cast_to_kern_ctx) {
		kernel = bpf_cast_to_kern_ctx(skb);
		return kernel->dev->nd_net.net->net_cookie;
	}
	/* What a program is given is the kernel's sk_buff: only the verifier calls it another. */
	kernel = (void *)skb;
	return BPF_CORE_READ(kernel, dev, nd_net.net, net_cookie);
}

static __always_inline __u8 checksum_state(struct __sk_buff *skb)
{
	struct sk_buff *kernel;

	if (bpf_cast_to_kern_ctx) {
		kernel = bpf_cast_to_kern_ctx(skb);
		return BPF_CORE_READ_BITFIELD(kernel, ip_summed);
	}
	kernel = (void *)skb;
	return BPF_CORE_READ_BITFIELD_PROBED(kernel, ip_summed);
}

#endif
