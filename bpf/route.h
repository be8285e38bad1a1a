/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * route.h: from a head to what to do with it. The virtual host is found by the
 * request's host, the route by the virtual host's program, and everything that one
 * head is matched by is of one generation.
 */
#ifndef KM_ROUTE_H
#define KM_ROUTE_H

#include "message.h"

struct host_walk {
	struct work *w;
	const __u8 *bytes;
	__u32 from;
	__u32 n;
};

static __always_inline __u8 lower(__u8 c)
{
	return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

static long copy_host(__u32 i, struct host_walk *h)
{
	if (i >= h->n || i >= KM_HOST_LEN)
		return 1;
	h->w->host.name[i] = lower(h->bytes[(h->from + i) & (KM_MAX_HEAD - 1)]);
	return 0;
}

struct wild_walk {
	struct host_key *key;
	const struct http *http;
	__u32 service;
	__u32 found;
	__u32 n; /* bytes of the host */
};

/* Cuts the first byte off (suffixes), or the last one (prefixes), and looks again. */
static long cut_last(__u32 i, struct wild_walk *w)
{
	__u32 len = w->n - 1 - i;
	__u32 *id;

	if (len < 1 || len >= KM_HOST_LEN)
		return 1;
	w->key->name[len] = 0;
	w->key->len = len;
	if (!(w->http->prefixes[(len >> 6) & 3] >> (len & 63) & 1))
		return 0;
	id = bpf_map_lookup_elem(&km_hosts, w->key);
	if (id)
		w->found = *id;
	return w->found != 0;
}

static long shift_host(__u32 i, struct wild_walk *w)
{
	struct host_key *key = w->key;

	if (i >= KM_HOST_LEN - 1)
		return 1;
	key->name[i] = key->name[i + 1];
	return 0;
}

static long cut_first(__u32 i, struct wild_walk *w)
{
	__u32 len = w->n - 1 - i;
	__u32 *id;

	if (len < 1 || len >= KM_HOST_LEN)
		return 1;
	bpf_loop(len + 1, shift_host, w, 0);
	w->key->len = len;
	if (!(w->http->suffixes[(len >> 6) & 3] >> (len & 63) & 1))
		return 0;
	id = bpf_map_lookup_elem(&km_hosts, w->key);
	if (id)
		w->found = *id;
	return w->found != 0;
}

static __always_inline void fill_host(struct work *w, const __u8 *bytes, __u32 from, __u32 n,
				      __u32 service, __u8 kind)
{
	struct host_walk h = {.w = w, .bytes = bytes, .from = from, .n = n};

	__builtin_memset(&w->host, 0, sizeof(w->host));
	w->host.service = service;
	w->host.kind = kind;
	w->host.len = n;
	bpf_loop(KM_HOST_LEN, copy_host, &h, 0);
}

/* The virtual host for a request's host; 0: none. */
static __noinline __u32 find_vhost(struct work *w, const __u8 *bytes, const struct http *http,
				   __u32 service)
{
	struct wild_walk wild = {.key = &w->host, .http = http};
	__u32 from = w->machine.spans[KM_SPAN_HOST][0];
	__u32 n = w->machine.spans[KM_SPAN_HOST][1] - from;
	__u32 *id;

	if (http->flags & KM_HTTP_STAR_ONLY)
		return http->star;
	if (http->flags & KM_HTTP_IGNORE_PORT)
		n = without_port(bytes, from, n);
	if (!n || n > KM_HOST_LEN)
		return http->star;
	fill_host(w, bytes, from, n, service, KM_HOST_EXACT);
	id = bpf_map_lookup_elem(&km_hosts, &w->host);
	if (id)
		return *id;
	wild.n = n;
	if (http->suffixes[0] | http->suffixes[1] | http->suffixes[2] | http->suffixes[3]) {
		w->host.kind = KM_HOST_SUFFIX;
		bpf_loop(KM_HOST_LEN, cut_first, &wild, 0);
		if (wild.found)
			return wild.found;
	}
	if (http->prefixes[0] | http->prefixes[1] | http->prefixes[2] | http->prefixes[3]) {
		fill_host(w, bytes, from, n, service, KM_HOST_PREFIX);
		bpf_loop(KM_HOST_LEN, cut_last, &wild, 0);
		if (wild.found)
			return wild.found;
	}
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

/*
 * Matches the head in scratch, of which end bytes are there, into the work's decision.
 * The program of the flow's last virtual host reads it first, since the host is in the
 * head; if it was another one, the right one's does.
 */
__noinline int match_head(struct flow *f, const struct packet *p, __u32 end)
{
	__u32 service, id, host, known;
	struct decision_of *d;
	struct route *route;
	struct machine *m;
	struct http *http;
	struct work *w;

	if (!f || !p)
		return 0;
	w = work_of(p);
	if (!w)
		return 0;
	d = &w->decision;
	m = &w->machine;
	service = f->service;
	http = bpf_map_lookup_elem(&km_http, &service);
	d->kind = KM_HEAD_REJECT;
	d->reply = 503;
	if (!http)
		return 0;
	id = f->vhost;
	if (!id || !run_machine(p, id, end)) {
		id = http->any;
		if (!run_machine(p, id, end))
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
	host = find_vhost(w, w->bytes, http, service);
	known = host == id || (host && run_machine(p, host, end));
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
