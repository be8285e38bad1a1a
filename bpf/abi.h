/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * abi.h: the structures that the kernel half and the helper share, and that
 * outlive both because the maps are pinned. A change of any layout here needs a
 * new KM_ABI, so that old programs never read new maps. Go's copies are generated
 * from this file's BTF; none is written by hand.
 *
 * Addresses are in network order, IPv4 in addr[0] with the rest 0. Ports are in
 * network order. A v4-mapped IPv6 address is always stored as IPv4.
 */
#ifndef KM_ABI_H
#define KM_ABI_H

#include <linux/bpf.h>

#include <stdbool.h>

#include "abi_http.h"

#define KM_ABI 4

/*
 * Weighted clusters of one service. The draw walks them, so the bound keeps the
 * connect hook short; Istio's routes seldom have more than 3.
 */
#define KM_MAX_WEIGHTED 32

/*
 * VIPs that one unconnected UDP socket remembers, so that replies show the VIP.
 * A resolver talks to one or two; the oldest is forgotten beyond this.
 */
#define KM_UDP_PEERS 8

/* Longest name kept; a longer one is cut and ends in a hash of the whole. */
#define KM_NAME_LEN 247

enum phase {
	KM_PHASE_NONE = 0,
	KM_PHASE_LOADED = 1, /* programs and maps are pinned */
	KM_PHASE_LIVE = 2,   /* and a first snapshot is in the maps */
};

/* The state word: one element, read by the plugin before it enrols a pod. */
struct state {
	__u32 abi;
	__u32 phase;
	__u64 generation; /* of the newest published snapshot */
	__u64 next_id;    /* ids below have been given out; never given twice */
};

/* A pod, keyed by its netns cookie. */
struct pod {
	__u32 scope;
	__u32 ip4;
	__u32 ip6[4];
};

/* A host frontend: an exact address, port and protocol. */
struct frontend_key {
	__u32 scope;
	__u8 proto;
	__u8 family; /* 4 or 6 */
	__be16 port;
	__be32 addr[4];
};

/* A prefix frontend: bits of scope, protocol, family and port always count. */
struct prefix_key {
	__u32 prefixlen; /* KM_PREFIX_FIXED_BITS + the address prefix's length */
	__u32 scope;
	__u8 proto;
	__u8 family;
	__be16 port; /* 0: every port */
	__be32 addr[4];
};

#define KM_PREFIX_FIXED_BITS 64

struct share {
	__u32 cluster;
	__u32 weight;
};

struct service {
	__u32 n;     /* entries used in shares */
	__u32 total; /* sum of their weights */
	__u32 flags; /* KM_SERVICE_* */
	__u32 pad;
	struct share shares[KM_MAX_WEIGHTED];
};

#define KM_SERVICE_HASH_SOURCE 1 /* maglev hashes the pod's address */
#define KM_SERVICE_HTTP 2        /* in km_http; shares serve what is not HTTP/1 */

enum kind {
	KM_KIND_ENDPOINTS = 0,
	KM_KIND_PASSTHROUGH = 1,
	KM_KIND_BLACKHOLE = 2,
	KM_KIND_REFUSED = 3, /* demands TLS origination */
};

enum policy {
	KM_POLICY_ROUND_ROBIN = 0,
	KM_POLICY_RANDOM = 1,
	KM_POLICY_LEAST_REQUEST = 2,
	KM_POLICY_MAGLEV = 3,
};

/* An extent of km_slots. */
struct extent {
	__u32 offset;
	__u32 n;
};

struct cluster {
	__u8 kind;
	__u8 policy;
	__u16 max_requests;    /* of one leg; 0: no limit */
	__u32 turn;            /* round robin's counter, advanced by the programs */
	__u32 max_connections; /* of one pod; KM_NO_LIMIT */
	struct extent v4;
	struct extent v6;
};

#define KM_NO_LIMIT 0xffffffff

/* A pod's connections to a cluster that bounds them (limit.h). */
struct connections_key {
	__u64 pod; /* netns cookie */
	__u32 cluster;
	__u32 pad;
};

/* Sockets that began to connect in one period of KM_CLAIM_SHIFT, and have not sent a SYN yet. */
struct claims {
	__u32 at;
	__u32 n;
};

struct connections {
	struct bpf_spin_lock lock;
	__u32 open;
	struct claims claims[2]; /* of even and of odd periods */
};

/*
 * A slot of an extent. Its meaning depends on the policy:
 *   round robin   a schedule: slot (turn mod n) is next; endpoint only
 *   random, least request
 *                 an alias table (Walker, Vose): draw a slot, then keep it if a
 *                 32-bit draw is below cut, else take the slot numbered alias
 *   maglev        the lookup table: slot (hash mod n); endpoint only
 */
struct slot {
	__u32 endpoint;
	__u32 weight;
	__u32 alias;
	__u32 cut;
};

struct endpoint {
	__be32 addr[4];
	__be16 port;
	__u8 family;
	__u8 pad;
	__u32 cluster;
};

/* Counters of one service's use of one cluster. */
struct stats_key {
	__u32 service;
	__u32 cluster;
};

struct stats {
	__u64 opened;   /* TCP: handshake done */
	__u64 closed;   /* TCP: of the opened ones */
	__u64 failed;   /* TCP: ended before the handshake was done */
	__u64 sent;     /* TCP: bytes the peer has acknowledged */
	__u64 received; /* TCP: bytes received in order */
	__u64 flows;    /* UDP: associations made */
	__u64 passed;   /* connections sent where the client meant them */
};

enum reason {
	KM_REASON_NO_ENDPOINT = 1, /* no healthy endpoint */
	KM_REASON_NO_FAMILY = 2,   /* endpoints, but none of the socket's family */
	KM_REASON_BLACKHOLE = 3,   /* the cluster is one on purpose */
	KM_REASON_TLS = 4,         /* the cluster demands TLS origination */
	KM_REASON_INCOMPLETE = 5,  /* the maps name something they do not hold */
	KM_REASON_OVERFLOW = 6,    /* the pod has as many connections as the cluster allows */
};

struct refusal_key {
	__u32 service;
	__u32 reason;
};

enum name_kind {
	KM_NAME_SERVICE = 1,
	KM_NAME_CLUSTER = 2,
	KM_NAME_SCOPE = 3,
	KM_NAME_ROUTE = 4, /* virtual host and route */
	KM_NAME_VHOST = 5, /* service and virtual host */
};

/* What an id stands for, so that a restarted helper gives the same ids. */
struct name {
	__u32 scope;
	__u8 kind;
	__u8 len;
	__u8 pad[2];
	__u8 name[KM_NAME_LEN + 1];
};

/*
 * The stamp: what a connected socket was meant to reach, in its own storage. It
 * dies with the socket.
 */
struct stamp {
	__be32 addr[4]; /* the VIP, as the application gave it */
	__be16 port;
	__u8 family; /* of the VIP: 4 also on a v4-mapped socket */
	__u8 flags;  /* KM_STAMP_* */
	__u32 service;
	__u32 cluster;
	__u32 endpoint;
	struct flow_ref flow; /* KM_STAMP_HTTP */
	__u32 claimed;        /* when: KM_STAMP_CLAIMED */
	__u64 settled_sent;   /* bytes already added to km_stats */
	__u64 settled_received;
};

#define KM_STAMP_COUNTED 1  /* in km_active of its endpoint */
#define KM_STAMP_OPEN 2     /* handshake done */
#define KM_STAMP_HTTP 4     /* routed on the interface: cluster and endpoint are 0 */
#define KM_STAMP_CLAIMED 8  /* among the claims of km_connections */
#define KM_STAMP_LIMITED 16 /* counted there as open */

/* One association of an unconnected UDP socket. */
struct udp_peer {
	__be32 vip[4];
	__be32 peer[4];
	__be16 vip_port;
	__be16 peer_port;
	__u8 family;
	__u8 pad[3];
	__u32 service;
	__u32 endpoint;
};

struct udp_peers {
	__u32 next; /* the slot to write next */
	__u32 pad;
	struct udp_peer peers[KM_UDP_PEERS];
};

/* One record of the socket iterator. */
struct socket_record {
	__u64 pod; /* netns cookie */
	__u32 service;
	__u32 cluster;
	__u32 endpoint;
	__u8 state; /* TCP state; 0: not TCP */
	__u8 flags;
	__u8 pad[2];
};

#endif
