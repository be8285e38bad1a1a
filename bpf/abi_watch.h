/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* abi_watch.h: the part of abi.h by which the L7 path is watched: events and traces. */
#ifndef KM_ABI_WATCH_H
#define KM_ABI_WATCH_H

#include <linux/bpf.h>

/* Events of the L7 path that are counted, one element of km_events each. */
enum event {
	KM_EVENT_FLOW = 0,      /* flows made */
	KM_EVENT_CONFIRMED = 1, /* optimistic leg was right */
	KM_EVENT_REBOUND = 2,   /* and was wrong */
	KM_EVENT_SWITCH_PARKED = 3,
	KM_EVENT_SWITCH_NEW = 4,
	KM_EVENT_PIN_TLS = 5,
	KM_EVENT_PIN_H2 = 6,
	KM_EVENT_PIN_OPAQUE = 7,
	KM_EVENT_PIN_CONNECT = 8,
	KM_EVENT_PIN_SERVER_FIRST = 9,
	KM_EVENT_PIN_UPGRADED = 10,
	KM_EVENT_PIN_MALFORMED = 11,
	KM_EVENT_PIN_UNTIL_CLOSE = 12,
	KM_EVENT_PIN_LOST = 13,
	KM_EVENT_REJECTED = 14, /* heads answered with 4xx or 505 */
	KM_EVENT_NO_ROUTE = 15,
	KM_EVENT_NO_ENDPOINT = 16, /* 503 */
	KM_EVENT_REFUSED = 17,     /* SYNs that an endpoint refused */
	KM_EVENT_TIMEOUT = 18,     /* SYNs without an answer */
	KM_EVENT_HELD = 19,        /* pipelined requests that had to wait */
	KM_EVENT_HOLD_FULL = 20,   /* no hold was free */
	KM_EVENT_FLOW_FULL = 21,   /* no flow was free: RST */
	KM_EVENT_QUOTA = 22,       /* the pod has too many flows: RST */
	KM_EVENT_LOST = 23,        /* packets of a stamped socket without a flow: RST */
	KM_EVENT_LEG_PORT = 24,    /* no source port was free for a leg */
	KM_EVENT_DISORDER =
		25, /* packets dropped because a head or chunk line must be read in order */
	KM_EVENT_HIDDEN_END = 26, /* an idle endpoint's end that the client did not see */
	KM_EVENT_BUSY = 27,       /* the flow's lock was not free in time */
	KM_EVENT_CHALLENGE = 28,  /* challenge ACKs to our SYN */
	KM_EVENT_RECLAIMED = 29,  /* flows of clients that vanished */
	KM_EVENT_TRACE_FULL = 30,
	KM_EVENTS = 31,
};

/* One packet of a traced flow (ring buffer km_trace). */
struct trace {
	__u64 at; /* ns */
	__u32 slot;
	__u32 generation;
	__u8 egress;
	__u8 leg;
	__u8 verdict; /* enum verdict */
	__u8 tcp_flags;
	__u8 state;
	__u8 pin;
	__u16 window;
	__u32 seq; /* as it came */
	__u32 ack;
	__u32 new_seq; /* as it went on */
	__u32 new_ack;
	__u32 len; /* payload */
	__u32 pad;
};

enum verdict {
	KM_VERDICT_PASS = 0,    /* not ours */
	KM_VERDICT_FORWARD = 1, /* translated */
	KM_VERDICT_SWALLOW = 2, /* the client will repeat it, or need not */
	KM_VERDICT_BOUNCE = 3,  /* answered to the client */
	KM_VERDICT_CRAFT = 4,   /* made into another packet to an endpoint */
	KM_VERDICT_DROP = 5,
};

#endif
