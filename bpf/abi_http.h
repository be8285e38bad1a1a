/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * abi_http.h: the part of abi.h that routes HTTP/1 requests. What the helper
 * writes: the routing of a service (http), its hosts, virtual hosts, routes and
 * prepared replies. What the programs write: flows, their legs, counters.
 *
 * Sequence numbers are in host order. "C space" is the connection as the client's
 * TCP sees it, "S space" as the leg's endpoint does.
 */
#ifndef KM_ABI_HTTP_H
#define KM_ABI_HTTP_H

#include <linux/bpf.h>

#include "abi_watch.h"

/* Longest host (RFC 1035, section 2.3.4) with a port behind it. */
#define KM_HOST_LEN 260

/* Nearly all hosts are shorter: their key is hashed and compared in a fraction of the time. */
#define KM_SHORT_HOST 56

/*
 * Legs of one flow: the endpoints that a connection alternates between without a
 * new handshake. A canary has 2 or 3; more would grow every flow.
 */
#define KM_LEGS 4

/*
 * Source ports of legs: below the kernel's default range of ephemeral ports, and
 * known by one mask. 16,384 of them cap the TIME_WAITs per pod and endpoint.
 */
#define KM_LEG_PORT_BASE 0x4000
#define KM_LEG_PORT_MASK 0xc000

/* Bytes of a TCP header's options (RFC 9293, section 3.1). */
#define KM_TCP_OPTIONS 40

/* How a service's HTTP is routed, by service id. */
struct http {
	__u32 flags; /* KM_HTTP_* */
	__u32 star;  /* virtual host of the domain "*", 0: none */
	__u32 any;   /* some virtual host: its program reads a head whose host is not known yet */
	__u32 all;   /* a virtual host whose one route leads to every cluster that any route
		      * leads to; 0: some route needs no endpoint */
	__u32 pad;
	__u64 suffixes[4]; /* bit n: a domain "*" + n bytes exists */
	__u64 prefixes[4]; /* bit n: a domain of n bytes + "*" exists */
};

#define KM_HTTP_IGNORE_PORT 1 /* a port in the host takes no part in the search */
#define KM_HTTP_LOCAL 2       /* bind: local, the program answers the SYN */
#define KM_HTTP_STAR_ONLY 4   /* no domain but "*": the host need not be looked up */

enum host_kind {
	KM_HOST_EXACT = 0,
	KM_HOST_SUFFIX = 1,
	KM_HOST_PREFIX = 2,
};

/*
 * A domain of at most KM_SHORT_HOST bytes without its "*"; the name is lower-case, the
 * bytes behind it 0.
 */
struct host_key {
	__u32 service;
	__u8 kind;
	__u8 pad;
	__u16 len;
	__u8 name[KM_SHORT_HOST];
};

/* A longer one; of a shorter one it begins with the key. */
struct long_host_key {
	__u32 service;
	__u8 kind;
	__u8 pad;
	__u16 len;
	__u8 name[KM_HOST_LEN];
};

/* The id under which the grammar of responses is found: a virtual host without routes. */
#define KM_VHOST_RESPONSE 0

/* A virtual host, by id; km_hosts and km_long_hosts lead to it. */
struct vhost {
	__u32 slab;       /* element of km_slabs, in which the program lies */
	__u32 program;    /* its offset there, in bytes */
	__u32 generation; /* changes with the program or the routes */
	__u32 n_routes;
	__u32 routes; /* the first one, in km_routes */
	__u32 pad;
};

enum route_kind {
	KM_ROUTE_FORWARD = 0,
	KM_ROUTE_REPLY = 1,       /* redirect, direct response */
	KM_ROUTE_UNSUPPORTED = 2, /* 503 */
};

enum hash_kind {
	KM_HASH_NONE = 0,
	KM_HASH_SOURCE = 1,
	KM_HASH_HEADER = 2,
};

#define KM_HASH_NAME 40 /* longest name of a header that is hashed */

struct route {
	__u32 id; /* of km_names, for counters */
	__u8 kind;
	__u8 hash;     /* enum hash_kind: the key of maglev */
	__u8 hash_len; /* of hash_name */
	__u8 pad;
	__u32 reply;  /* of km_replies, for KM_ROUTE_REPLY */
	__u32 shares; /* the first one, in km_shares */
	__u32 n_shares;
	__u32 only;     /* the cluster, if there is one share; 0: draw */
	__u32 total;    /* sum of their weights */
	__u32 fraction; /* of 2^32 that is taken; 0: every request */
	__u32 abort;    /* of 2^32 that is aborted; 0: none */
	__u32 abort_reply;
	__u32 pad3;
	__u8 never; /* the fraction is 0 */
	__u8 abort_always;
	__u8 pad2[2];
	__u8 hash_name[KM_HASH_NAME]; /* lower-case */
};

/* A prepared answer, made of parts. Ids below KM_REPLY_FIRST are statuses. */
#define KM_REPLY_FIRST 1024
#define KM_REPLY_OVERFLOW 1 /* 503: the cluster allows no further connection */
#define KM_REPLY_PARTS 8
#define KM_REPLY_TEXT 4864 /* a direct response's body of 4,096 bytes, and its head */

enum part_kind {
	KM_PART_TEXT = 0,      /* text[from, from+len) */
	KM_PART_HOST = 1,      /* the request's host, without a port */
	KM_PART_AUTHORITY = 2, /* the request's host, as it came */
	KM_PART_PATH = 3,      /* the request's path from byte `from` on */
	KM_PART_QUERY = 4,     /* "?" and the query, if there is one */
	KM_PART_BODY = 5,      /* text, but not in an answer to HEAD */
	KM_PART_NOT_80 = 6,    /* the request's host as it came, but without port 80 */
};

struct part {
	__u16 kind;
	__u16 from;
	__u16 len;
};

struct reply {
	__u16 status;
	__u16 n_parts;
	struct part parts[KM_REPLY_PARTS];
	__u8 text[KM_REPLY_TEXT];
};

/* A client's connection, by pod and tuple. */
struct flow_key {
	__u64 pod; /* netns cookie */
	__be32 client[4];
	__be32 vip[4];
	__be16 client_port;
	__be16 vip_port;
	__u32 family;
};

/* A leg, by pod and tuple. */
struct leg_key {
	__u64 pod;
	__be32 endpoint[4];
	__be16 port;     /* the endpoint's */
	__be16 leg_port; /* ours */
	__u32 family;
};

/* A flow is an element of km_flows; its generation tells whether it still is the same. */
struct flow_ref {
	__u32 slot;
	__u32 generation;
};

/* The leg itself says whether it still has the tuple; only one leg has it at a time. */
struct leg_ref {
	__u32 slot;
	__u32 ours; /* 0: it is another layout's (older.h) */
	__u32 leg;
};

/*
 * What is left of a leg whose flow has been forgotten: what the endpoint, if it is in
 * TIME_WAIT, expects of the next one with the same tuple (RFC 6191).
 */
struct tombstone {
	__u32 tag;   /* a second hash of the tuple */
	__u32 seq;   /* S: end of what was sent */
	__u32 tsval; /* the last timestamp; 0: it had none */
	__u32 at;    /* ms */
};

enum leg_state {
	KM_LEG_NONE = 0,
	KM_LEG_SYN = 1, /* our SYN is out */
	KM_LEG_OPEN = 2,
	KM_LEG_DEAD = 3, /* ended; the entry keeps its last numbers (tombstone) */
};

struct leg {
	__be32 addr[4];
	__be16 port;
	__be16 leg_port;
	__u8 state;
	__u8 scale;  /* the endpoint's window scale */
	__u8 flags;  /* KM_LEG_* */
	__u8 tries;  /* SYNs sent */
	__u32 dc;    /* S = C + dc, for the client's bytes */
	__u32 ds;    /* C = S + ds, for the endpoint's bytes */
	__u32 una;   /* S: the endpoint has acknowledged up to here */
	__u32 sent;  /* S: end of what was sent to it */
	__u32 nxt;   /* S: end of what it has sent */
	__u32 tsval; /* the last timestamp sent to it */
	__u32 cluster;
	__u32 endpoint; /* 0: the original destination */
	__u32 requests; /* served */
	__u32 since;    /* ms: when the last SYN went */
	__u16 mss;
	__u16 window; /* last one seen, as it came */
	__u8 mac[6];  /* of the next hop */
	__u8 pad[2];
};

#define KM_LEG_TIMESTAMPS 1
#define KM_LEG_SERVED 2    /* a request was sent to it */
#define KM_LEG_UNSCALED 8  /* its endpoint does not scale windows, so ours are not scaled for it */
#define KM_LEG_SELF 16     /* the endpoint is the pod itself: the leg comes from the VIP */
#define KM_LEG_WORN 32     /* it has served as many requests as its cluster allows */
#define KM_LEG_CLOSING 4   /* its endpoint has ended; the client was not told */
#define KM_LEG_COUNTED 64  /* its requests are counted in km_active while they run */
#define KM_LEG_LIMITED 128 /* it is counted in km_connections, for its cluster */

enum frame_kind {
	KM_FRAME_HEAD = 0,   /* a head begins or goes on at pos */
	KM_FRAME_LENGTH = 1, /* a body ends at pos, or left bytes later */
	KM_FRAME_CHUNK = 2,  /* a chunk's line begins or goes on at pos */
	KM_FRAME_DATA = 3,   /* chunk data ends at pos, or left bytes later */
	KM_FRAME_TRAILER = 4,
	KM_FRAME_CLOSE = 5, /* until the connection ends */
};

/* Where one direction's messages are. */
struct frame {
	__u32 pos; /* C space: the next byte to be looked at */
	__u8 kind;
	__u8 line; /* state within a chunk's line or a trailer */
	__u16 len; /* bytes of it so far */
	__u64 left;
};

enum flow_state {
	KM_FLOW_FREE = 0,
	KM_FLOW_SYN = 1, /* the client's SYN is out to an endpoint */
	KM_FLOW_OPEN = 2,
	KM_FLOW_CLOSED = 3, /* both ends have ended; late packets still pass */
};

enum pin {
	KM_PIN_NONE = 0,
	KM_PIN_TLS = 1,
	KM_PIN_H2 = 2,
	KM_PIN_OPAQUE = 3,
	KM_PIN_CONNECT = 4,
	KM_PIN_SERVER_FIRST = 5,
	KM_PIN_UPGRADED = 6,
	KM_PIN_MALFORMED = 7, /* a response that is not HTTP */
	KM_PIN_UNTIL_CLOSE = 8,
	KM_PIN_LOST = 9, /* framing is no longer known */
};

/*
 * What the flow's last head was matched and bound by. It holds as long as nothing has
 * been published since: what is looked up again costs memory that is cold by then.
 */
struct memo {
	__u32 published; /* km_limits' then; 0: there is none */
	__u32 flags;     /* of the service's struct http, as the next two */
	__u32 star;
	__u32 any;
	__u32 id; /* of vhost; 0: none */
	__u32 pad;
	struct vhost vhost;
	__u32 cluster; /* it has one endpoint, and its legs do not wear out; 0: none */
	__u32 endpoint;
};

struct flow {
	__u32 busy; /* the lock */
	__u32 generation;
	__u32 slot;        /* its own number */
	__u8 state;        /* enum flow_state */
	__u8 pin;          /* enum pin */
	__u8 leg;          /* the current one */
	__u8 next_leg;     /* being opened; KM_LEGS: none */
	__u16 flags;       /* KM_FLOW_* */
	__u8 scale;        /* window scale that the client was told; 255: none */
	__u8 client_scale; /* the client's own; 255: none */
	__u32 service;
	__u32 client_end;    /* C: end of what the client has sent */
	__u32 client_ack;    /* C: the client has acknowledged up to here */
	__u32 server_end;    /* C: end of what the client was sent */
	__u32 seen;          /* ms: the SYN, the last request, or the end */
	__u16 client_window; /* unscaled */
	__u16 client_mss;
	__u16 mss;      /* that the client was told: it sends no larger segments */
	__u8 used_legs; /* bits of the legs that were ever made */
	__u8 pad1;
	struct frame request;
	struct frame response;
	struct leg legs[KM_LEGS];
	/* Seldom used. */
	struct flow_key key;
	__u32 hold;      /* element of km_holds + 1; 0: none */
	__u32 hold_base; /* C: position of its first byte */
	__u32 hold_len;
	__u32 reply_base; /* C: where the local answer begins that is out */
	__u32 reply;      /* its id */
	__u32 client_isn;
	struct memo memo;
	__u64 started;    /* ns: the request that runs */
	__u64 held_since; /* ns: the first bytes of the head in hold */
	__u32 vhost;      /* of the last request */
	__u32 route;      /* of the request that runs, or of the one that was held */
	__u32 cluster;
	__u32 chosen; /* C: position of the head that route and cluster are for */
	__u32 next_cluster;
	__u32 next_route;
	__u32 running; /* C: position of the head of the request that runs */
	__u32 endpoint;
	__u8 pending;   /* responses that are to come on the current leg */
	__u8 tries;     /* endpoints tried for this request or SYN */
	__u16 status;   /* of the response that runs */
	__u32 heads;    /* bit n: the n-th pending request is HEAD */
	__u32 tried[4]; /* endpoints */
	__u32 requests;
	__u32 rebinds;
	__u8 options_len;
	__u8 options[64]; /* of the client's SYN, as it is sent on; KM_TCP_OPTIONS of them */
	__u8 syn_flags;   /* of the client's SYN: ECN */
	/* The request that a leg is being opened for: */
	__u8 opening_head;  /* is HEAD */
	__u8 opening_close; /* is the last one */
};

#define KM_FLOW_FIRST 1 /* the optimistic leg has not been confirmed */
#define KM_FLOW_CLIENT_FIN 2
#define KM_FLOW_SERVER_FIN 4
#define KM_FLOW_SACK 8         /* both the client and the first endpoint permit it */
#define KM_FLOW_REBOUND 16     /* some leg has deltas */
#define KM_FLOW_LOCAL 32       /* the program answered the SYN */
#define KM_FLOW_REPLY 64       /* a local answer is out; what the client sends is swallowed */
#define KM_FLOW_CLOSE 128      /* the connection ends with this response */
#define KM_FLOW_TRACE 256      /* set by the helper */
#define KM_FLOW_CHOSEN 512     /* route, cluster and chosen are valid */
#define KM_FLOW_HELD 1024      /* bytes in hold are acknowledged to the client */
#define KM_FLOW_LISTED 2048    /* it has ended, and its element is in km_over or km_ended */
#define KM_FLOW_IDLE 4096      /* no current leg */
#define KM_FLOW_SENT 8192      /* what hold has was sent; it waits for the endpoint's ACK */
#define KM_FLOW_RESPONSE 16384 /* hold has the beginning of a response's head */
#define KM_FLOW_LIMITED 32768  /* some leg is, or was, counted in km_connections */

/* Requests served: what istio_requests_total counts. */
struct request_key {
	__u64 pod;
	__u32 service;
	__u32 cluster; /* 0: answered by the program */
	__u32 route;   /* 0: none matched */
	__u16 status;  /* 0: the connection ended before a status */
	__u16 flags;   /* KM_REQUEST_* */
};

#define KM_REQUEST_LOCAL 1

/* Upper bounds of the duration's buckets are istio_request_duration_milliseconds' own. */
#define KM_BUCKETS 20

struct request_stats {
	__u64 count;
	__u64 duration;            /* ns, sum */
	__u64 buckets[KM_BUCKETS]; /* not cumulative; the last one has no bound */
};

/* Sizes that the programs read: one element, written by the loader when it makes the map. */
struct limits {
	__u32 flows; /* elements of km_flows */
	__u32 holds;
	__u32 quota;     /* flows of one pod; 0: an older layout, which makes no new ones */
	__u32 poison;    /* tests: overwrite a hold when it is freed */
	__u32 next_flow; /* elements from here on were never used; programs advance it */
	__u32 next_hold;
	__u32 hand; /* where the search for vanished clients goes on */
	/*
	 * Bits of a leg's port that are given: while programs of two layouts make legs,
	 * each has its own half of the ports.
	 */
	__u32 port_mask;
	__u32 port_value;
	__u32 outward; /* flows may send to ports of legs: to a pod itself, or to such a service */
	__u32 next_port;    /* of the next leg */
	__u32 shared;       /* sockets of some pod may have ports of legs for themselves */
	__u32 published;    /* grows with each publication; 0: what is looked up is not kept */
	__u64 marked_until; /* ns: no endpoint is marked any longer */
	__u32 limited;      /* some cluster bounds its connections, or did */
	__u32 pad;
};

#endif
