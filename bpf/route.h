/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * route.h: from a head to what to do with it. The virtual host is found by the
 * request's host, the route by the virtual host's program, and everything that one
 * head is matched by is of one generation.
 */
#ifndef KM_ROUTE_H
#define KM_ROUTE_H

#include "message.h"

static __always_inline __u8 lower(__u8 c)
{
	return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

/* The letters of eight bytes in lower case. */
static __always_inline __u64 lower_word(__u64 v)
{
	__u64 low = v & (0x7f * KM_ONES);
	__u64 from_a = low + (0x80 - 'A') * KM_ONES, above_z = low + (0x7f - 'Z') * KM_ONES;

	return v | (((from_a ^ above_z) & ~v & KM_TOPS) >> 2);
}

struct host_walk {
	struct work *w;
	const __u8 *bytes;
	__u32 from;
	__u32 n;
};

/* Eight bytes of a host, without those behind its end. false: it is whole. */
static __always_inline bool copy_word(struct host_walk *h, __u32 i)
{
	__u32 done = 8 * i, left = h->n - done;
	__u64 v;

	if (done >= h->n)
		return false;
	v = lower_word(plain_word(h->bytes, h->from + done));
	if (left < 8)
		v &= (1ULL << (8 * left & 63)) - 1;
	*(__u64 *)&h->w->host.name[done & 0x1f8] = v;
	return true;
}

static long copy_words(__u32 i, struct host_walk *h)
{
	return !copy_word(h, i) || i > KM_HOST_LEN / 8;
}

/* Makes the key of the n bytes of a host. */
static __always_inline void fill_host(struct work *w, const __u8 *bytes, __u32 from, __u32 n)
{
	struct host_walk h = {.w = w, .bytes = bytes, .from = from, .n = n};

	w->host.len = n;
	if (n <= KM_SHORT_HOST) {
		__builtin_memset(w->host.name, 0, KM_SHORT_HOST);
		for (__u32 i = 0; i < KM_SHORT_HOST / 8; i++)
			if (!copy_word(&h, i))
				break;
	} else {
		__builtin_memset(w->host.name, 0, sizeof(w->host.name));
		bpf_loop(KM_HOST_LEN / 8 + 1, copy_words, &h, 0);
	}
}

static __always_inline __u32 *look_up_host(struct work *w)
{
	return w->host.len <= KM_SHORT_HOST ? bpf_map_lookup_elem(&km_hosts, &w->host)
					    : bpf_map_lookup_elem(&km_long_hosts, &w->host);
}

/* The search for a domain that has "*": the longest one wins (Envoy's rule). */
struct wild_walk {
	struct work *w;
	const __u8 *bytes;
	const __u64 *lengths; /* of the domains that there are */
	__u32 from;
	__u32 n; /* bytes of the host */
	__u32 found;
	__u32 suffix;
};

/* Without one more byte: the first one for suffixes, the last one for prefixes. */
static long cut_host(__u32 i, struct wild_walk *w)
{
	__u32 len = w->n - 1 - i;
	__u32 *id;

	if (len < 1 || len >= KM_HOST_LEN)
		return 1;
	if (!(w->lengths[(len >> 6) & 3] >> (len & 63) & 1))
		return 0;
	fill_host(w->w, w->bytes, w->suffix ? w->from + 1 + i : w->from, len);
	id = look_up_host(w->w);
	if (id)
		w->found = *id;
	return w->found != 0;
}

static __always_inline __u32 find_wild(struct wild_walk *w, const __u64 *lengths, __u32 kind)
{
	if (!(lengths[0] | lengths[1] | lengths[2] | lengths[3]))
		return 0;
	w->lengths = lengths;
	w->suffix = kind == KM_HOST_SUFFIX;
	w->w->host.kind = kind;
	bpf_loop(KM_HOST_LEN, cut_host, w, 0);
	return w->found;
}

/* The virtual host for a request's host; 0: none. */
static __noinline __u32 find_vhost(struct work *w, const __u8 *bytes, const struct memo *m,
				   __u32 service)
{
	struct wild_walk wild = {.w = w, .bytes = bytes};
	struct http *http;
	__u32 from = w->machine.spans[KM_SPAN_HOST][0];
	__u32 n = w->machine.spans[KM_SPAN_HOST][1] - from;
	__u32 *id;

	if (m->flags & KM_HTTP_STAR_ONLY)
		return m->star;
	if (m->flags & KM_HTTP_IGNORE_PORT)
		n = without_port(bytes, from, n);
	if (!n || n > KM_HOST_LEN)
		return m->star;
	w->host.service = service;
	w->host.kind = KM_HOST_EXACT;
	fill_host(w, bytes, from, n);
	id = look_up_host(w);
	if (id)
		return *id;
	http = bpf_map_lookup_elem(&km_http, &service);
	if (!http)
		return 0;
	wild.from = from;
	wild.n = n;
	if (find_wild(&wild, http->suffixes, KM_HOST_SUFFIX) ||
	    find_wild(&wild, http->prefixes, KM_HOST_PREFIX))
		return wild.found;
	return http->star;
}

static __always_inline bool by_chance(__u32 share)
{
	return bpf_get_prandom_u32() < share;
}

struct route_walk {
	struct candidates *found;
	const struct vhost *vhost;
	struct route *route; /* the result */
};

/* One candidate, or the step to the next word of them. */
static long next_candidate(__u32 i, struct route_walk *r)
{
	struct walk *w = &r->found->inner;
	struct walk *outer = &r->found->outer;
	struct route *route;
	__u32 number;

	if (!w->rest) {
		if (!outer->rest)
			return 1;
		w->word = lowest(outer->rest);
		outer->rest &= outer->rest - 1;
		w->rest = r->found->words[w->word & (KM_ROUTE_WORDS - 1)];
		return 0;
	}
	number = w->word * 64 + lowest(w->rest);
	w->rest &= w->rest - 1;
	if (number >= r->vhost->n_routes)
		return 0;
	number += r->vhost->routes;
	route = bpf_map_lookup_elem(&km_routes, &number);
	if (!route || route->never || (route->fraction && !by_chance(route->fraction)))
		return 0;
	r->route = route;
	return 1;
}

/* The first candidate, in order, that its fraction takes. */
static __noinline struct route *first_route(struct candidates *found, const struct vhost *v)
{
	struct route_walk w = {.found = found, .vhost = v};

	found->outer.rest = found->summary;
	found->inner.rest = 0;
	/* The first word's first candidate, nearly always. */
	if (!next_candidate(0, &w) && !next_candidate(1, &w))
		bpf_loop(KM_ROUTE_WORDS * 65, next_candidate, &w, 0);
	return w.route;
}

struct share_walk {
	__u32 first;
	__u32 n;
	__u32 at; /* the next one */
	__u32 left;
	__u32 cluster;
};

static long next_share(__u32 i, struct share_walk *w)
{
	__u32 at = w->first + w->at;
	struct share *s;

	if (w->at++ >= w->n)
		return 1;
	s = bpf_map_lookup_elem(&km_shares, &at);
	if (!s)
		return 1;
	if (w->left < s->weight) {
		w->cluster = s->cluster;
		return 1;
	}
	w->left -= s->weight;
	return 0;
}

static __noinline __u32 draw_share(const struct route *route)
{
	if (route->only)
		return route->only;
	struct share_walk w = {
		.first = route->shares,
		.n = route->n_shares,
		.at = unknown(0),
		.left = route->n_shares > 1 ? draw(route->total) : 0,
	};

	if (!next_share(0, &w))
		bpf_loop(1 << 12, next_share, &w, 0);
	return w.cluster;
}

/* Looks for "\n" name ":" and hashes the value behind it. */
struct header_walk {
	const struct route *route;
	const __u8 *bytes;
	__u32 end;
	__u32 matched; /* bytes of the name; 0xff: not here */
	__u32 hash;
	__u8 in_value;
	__u8 found;
	__u8 pad[2];
};

static long hash_header_byte(__u32 i, struct header_walk *h)
{
	__u8 c;

	if (i >= h->end)
		return 1;
	c = h->bytes[i & (KM_MAX_HEAD - 1)];
	if (c == '\n') {
		h->matched = 0;
		h->in_value = 0;
		return 0;
	}
	if (h->in_value) {
		if (c > ' ')
			h->hash = hash_byte(h->hash, c);
		return 0;
	}
	if (h->matched == 0xff)
		return 0;
	if (h->matched == h->route->hash_len) {
		h->in_value = h->found = c == ':';
		h->matched = 0xff;
		return 0;
	}
	if (h->matched < KM_HASH_NAME && lower(c) == h->route->hash_name[h->matched])
		h->matched++;
	else
		h->matched = 0xff;
	return 0;
}

/* Where a route hashes requests, and they have what it hashes. */
static __noinline bool hash_of(const struct route *route, const struct flow *f, const __u8 *bytes,
			       __u32 end, __u32 *hash)
{
	struct header_walk h = {
		.route = route,
		.bytes = bytes,
		.end = end,
		.matched = unknown(0xff),
		.in_value = unknown(0),
	};

	if (route->hash == KM_HASH_SOURCE) {
		*hash = hash_addr(f->key.client, f->key.family);
		return true;
	}
	bpf_loop(KM_MAX_HEAD, hash_header_byte, &h, 0);
	*hash = hash_end(h.hash);
	return h.found;
}

/* Looks up what the flow's service is routed by. false: it is not. */
static __noinline bool renew_memo(struct flow *f, struct limits *l)
{
	__u32 service = f->service;
	struct memo *m = &f->memo;
	struct http *http;
	__u32 published;

	m->id = m->cluster = m->published = 0;
	/* Ordered before what follows: nothing older is kept under it. */
	published = __sync_fetch_and_add(&l->published, 0);
	http = bpf_map_lookup_elem(&km_http, &service);
	if (!http)
		return false;
	m->flags = http->flags;
	m->star = http->star;
	m->any = http->any;
	m->published = published;
	return true;
}

/*
 * Runs the program of a virtual host over the head in scratch. The descriptor is copied:
 * what is matched by it later is of the same generation. 0: there is none.
 */
static __always_inline int run_vhost(struct work *w, const struct packet *p, struct memo *m,
				     __u32 id, __u32 end)
{
	if (m->id == id) {
		w->vhost = m->vhost;
	} else {
		struct vhost *v = bpf_map_lookup_elem(&km_vhosts, &id);

		if (!v)
			return 0;
		w->vhost = *v;
		m->vhost = w->vhost;
		m->id = id;
	}
	return run_machine(p, end);
}

/*
 * Matches the head in scratch, of which end bytes are there, into the work's decision.
 * The program of the flow's last virtual host reads it first, since the host is in the
 * head; if it was another one, the right one's does.
 */
__noinline int match_head(struct flow *f, const struct packet *p, __u32 end)
{
	struct decision_of *d;
	struct limits *l = limits();
	__u32 id, host, known;
	struct route *route;
	struct memo *memo;
	struct machine *m;
	struct work *w;

	if (!f || !p || !l)
		return 0;
	w = work_of(p);
	if (!w)
		return 0;
	memo = &f->memo;
	d = &w->decision;
	m = &w->machine;
	d->kind = KM_HEAD_REJECT;
	d->reply = 503;
	if ((!memo->published || memo->published != l->published) && !renew_memo(f, l))
		return 0;
	id = f->vhost;
	if (!id || !run_vhost(w, p, memo, id, end)) {
		id = memo->any;
		if (!run_vhost(w, p, memo, id, end))
			return 0;
	}
	d->kind = m->kind;
	d->rule = m->rule;
	d->method_done = m->spans[KM_SPAN_METHOD][1] != 0;
	d->reply = 0;
	if (m->kind == KM_HEAD_INCOMPLETE || m->kind == KM_HEAD_PIN)
		return 0;
	d->head_len = m->position;
	if (m->kind == KM_HEAD_REJECT) {
		d->reply = 400;
		if (m->rule == KM_RULE_VERSION_UNSUPPORTED)
			d->reply = 505;
		if (m->rule == KM_RULE_TOO_MANY_FIELDS || m->rule == KM_RULE_HEAD_TOO_LONG)
			d->reply = 431;
		return 0;
	}
	host = find_vhost(w, w->bytes, memo, f->service);
	known = host == id || (host && run_vhost(w, p, memo, host, end));
	f->vhost = host;
	d->vhost = host;
	if (!known) {
		d->reply = 404;
		return 0;
	}
	route = first_route(&w->found, &w->vhost);
	if (!route) {
		d->reply = 404;
		return 0;
	}
	d->route = route->id;
	if (route->abort_always || (route->abort && by_chance(route->abort))) {
		d->reply = route->abort_reply;
		return 0;
	}
	if (route->kind == KM_ROUTE_REPLY) {
		d->reply = route->reply;
		return 0;
	}
	if (route->kind != KM_ROUTE_FORWARD || !route->total) {
		d->reply = 503;
		return 0;
	}
	d->cluster = draw_share(route);
	if (route->hash != KM_HASH_NONE)
		d->hashed = hash_of(route, f, w->bytes, d->head_len, &d->hash);
	return 0;
}

#endif
