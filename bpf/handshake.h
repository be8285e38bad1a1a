/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * handshake.h: a client's SYN. Where the service has something to guess it goes to
 * the likeliest endpoint, with the client's own options, so that the handshake is the
 * endpoint's own; elsewhere the program answers it.
 */
#ifndef KM_HANDSHAKE_H
#define KM_HANDSHAKE_H

#include "bounce.h"
#include "forward.h"

/* The window scale that the program offers where it answers the SYN. */
#define KM_LOCAL_SCALE 8

/* A SYN that the client repeats sooner than this was only late. */
#define KM_SYN_AGAIN_MS 500

struct option_walk {
	struct flow *f;
	__u32 at;
	__u32 tsval;
	__u8 sack;
	__u8 changed; /* some option is not sent on */
	__u8 pad[2];
};

/* Linux' own options, in their usual places, without a loop. false: these are others. */
static __always_inline bool usual_options(struct option_walk *w)
{
	struct flow *f = w->f;
	const __u8 *o = f->options;

	if (f->options_len != 20 || !are_usual(o))
		return false;
	f->client_mss = o[2] << 8 | o[3];
	f->client_scale = o[19];
	w->sack = 1;
	w->tsval = (__u32)o[8] << 24 | o[9] << 16 | o[10] << 8 | o[11];
	return true;
}

/*
 * Reads one option of the client's SYN. What the program cannot keep true towards
 * another endpoint (multipath, fast open, signatures, anything unknown) is not sent on.
 */
static long syn_option(__u32 i, struct option_walk *w)
{
	struct flow *f = w->f;
	__u32 at = w->at & 63, len;
	__u8 kind;

	if (at >= f->options_len || at >= KM_TCP_OPTIONS)
		return 1;
	kind = f->options[at];
	if (kind == OPTION_END)
		return 1;
	if (kind == OPTION_NOP) {
		w->at = at + 1;
		return 0;
	}
	if (at + 1 >= KM_TCP_OPTIONS)
		return 1;
	len = f->options[at + 1];
	if (len < 2 || at + len > f->options_len || at + len > KM_TCP_OPTIONS)
		return 1;
	w->at = at + len;
	switch (kind) {
	case OPTION_MSS:
		if (len == 4 && at + 3 < KM_TCP_OPTIONS)
			f->client_mss = f->options[at + 2] << 8 | f->options[at + 3];
		return 0;
	case OPTION_SCALE:
		if (len == 3 && at + 2 < KM_TCP_OPTIONS)
			f->client_scale = f->options[at + 2];
		return 0;
	case OPTION_SACK_OK:
		w->sack = 1;
		return 0;
	case OPTION_TIMESTAMPS:
		if (len == 10 && at + 5 < KM_TCP_OPTIONS)
			w->tsval = (__u32)f->options[at + 2] << 24 | f->options[at + 3] << 16 |
				   f->options[at + 4] << 8 | f->options[at + 5];
		return 0;
	}
	w->changed = 1;
	for (__u32 k = 0; k < KM_TCP_OPTIONS; k++) {
		if (k >= len)
			break;
		f->options[(at + k) & 63] = OPTION_NOP;
	}
	return 0;
}

/* Answers the SYN: what the client may send then fits into a hold. */
__noinline int answer_syn(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct craft *c;
	struct work *w;
	__u32 mss;
	__u8 *o;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	c = &w->craft;
	craft_for_client(c, f, TCP_SYN | TCP_ACK, f->server_end - 1, f->client_isn + 1);
	mss = f->client_mss;
	if (mss < 64 || mss > KM_MAX_HEAD)
		mss = 1400;
	/* A multiple of the MSS: a sender never sends the odd rest of a small window. */
	c->tcp.window = bpf_htons(KM_MAX_HEAD / mss * mss);
	o = c->bytes + 20;
	__builtin_memset(o, OPTION_NOP, 12);
	o[0] = OPTION_MSS;
	o[1] = 4;
	o[2] = f->client_mss >> 8;
	o[3] = f->client_mss;
	if (f->scale != 255) {
		o[5] = OPTION_SCALE;
		o[6] = 3;
		o[7] = KM_LOCAL_SCALE;
	}
	if (f->flags & KM_FLOW_SACK) {
		o[10] = OPTION_SACK_OK;
		o[11] = 2;
	}
	c->options_len = 12;
	c->link = LINK_SWAP;
	if (craft_packet(skb, p, c))
		return swallow();
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline void be_local(struct flow *f)
{
	f->state = KM_FLOW_OPEN;
	f->flags |= KM_FLOW_LOCAL | KM_FLOW_IDLE | KM_FLOW_FIRST;
	f->mss = f->client_mss;
	f->scale = f->client_scale == 255 ? 255 : KM_LOCAL_SCALE;
	f->server_end = bpf_get_prandom_u32();
	f->client_ack = f->server_end;
	f->response.pos = f->server_end;
}

/* The guess: the cluster for which this frontend was made, or one of the service's. */
static __always_inline __u32 guess_cluster(const struct flow *f, const struct service *svc)
{
	struct frontend_key key = {
		.proto = IPPROTO_TCP,
		.family = f->key.family,
		.port = f->key.vip_port,
	};
	__u64 cookie = f->key.pod;
	struct pod *pod;
	__u32 *cluster;

	pod = bpf_map_lookup_elem(&km_pods, &cookie);
	key.scope = pod ? pod->scope : 0;
	__builtin_memcpy(key.addr, f->key.vip, 16);
	cluster = bpf_map_lookup_elem(&km_guesses, &key);
	if (cluster)
		return *cluster;
	return svc->n ? draw_cluster(svc) : 0;
}

/* Sends the SYN of leg 0 to the next endpoint; 0: there is none, or no leg to it. */
__noinline int guess(struct __sk_buff *skb, struct flow *f, __u32 tsval)
{
	struct choice_of to = {};

	if (!f)
		return 0;
	if (!pick_endpoint(f, &to, f->cluster, hash_addr(f->key.client, f->key.family)))
		return 0;
	if (!new_leg(skb, f, &to, 0, f->client_isn, tsval))
		return 0;
	if (tsval && !(f->legs[0].flags & KM_LEG_TIMESTAMPS))
		send_no_timestamps(f);
	return 1;
}

struct endpoint_walk {
	__u32 first;
	__u32 n;
	__u32 v4;
	__u32 found;
};

static long has_endpoint(__u32 i, struct endpoint_walk *w)
{
	__u32 at = w->first + i, id;
	struct cluster *cl;
	struct share *s;

	if (i >= w->n)
		return 1;
	s = bpf_map_lookup_elem(&km_shares, &at);
	if (!s)
		return 1;
	id = s->cluster;
	cl = bpf_map_lookup_elem(&km_clusters, &id);
	w->found = cl && (cl->kind == KM_KIND_PASSTHROUGH ||
			  (cl->kind == KM_KIND_ENDPOINTS && (w->v4 ? cl->v4.n : cl->v6.n)));
	return w->found;
}

/* Clusters of one service that are looked at before it is taken for alive. */
#define KM_CLUSTERS_SEEN 4096

/* Whether any cluster to which the virtual host's one route leads has an endpoint. */
static __always_inline bool some_endpoint(__u32 vhost, bool v4)
{
	struct vhost *v = bpf_map_lookup_elem(&km_vhosts, &vhost);
	struct endpoint_walk w = {.v4 = v4};
	struct route *route;
	__u32 at;

	if (!v)
		return true;
	at = v->routes;
	route = bpf_map_lookup_elem(&km_routes, &at);
	if (!route)
		return true;
	w.first = route->shares;
	w.n = route->n_shares;
	bpf_loop(KM_CLUSTERS_SEEN, has_endpoint, &w, 0);
	return w.found || w.n > KM_CLUSTERS_SEEN;
}

/*
 * Sends the client's own SYN on, with other addresses and ports; where its options or
 * its sequence number change, one is made in its place.
 */
static __always_inline int send_guess(struct __sk_buff *skb, struct packet *p, struct flow *f,
				      bool changed)
{
	const struct leg *leg = &f->legs[0];

	/* Data in a SYN (fast open, without a cookie too) is not matched: it comes again. */
	if (changed || p->len || leg->dc || leg->flags & KM_LEG_SELF)
		return send_syn(skb, p, f, 0, f->client_isn);
	to_leg(skb, p, f);
	return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
}

/* The first SYN of a connection; f is new. */
__noinline int first_syn(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct option_walk w = {.at = unknown(0)};
	struct service *svc;
	struct http *http;
	__u32 service, n;

	if (!p || !f)
		return TCX_DROP;
	service = f->service;
	w.f = f;
	f->client_isn = p->seq;
	f->client_end = p->seq + 1;
	f->request.pos = p->seq + 1;
	f->client_mss = 536; /* RFC 9293, section 3.7.1 */
	f->client_scale = 255;
	f->client_window = p->window;
	f->next_leg = KM_LEGS;
	f->syn_flags = p->flags;
	f->seen = now_ms();
	n = p->tcp_len - 20;
	if (is_between(&n, 1, KM_TCP_OPTIONS)) {
		if (bpf_skb_load_bytes(skb, p->l4 + 20, f->options, n))
			return swallow();
		f->options_len = n;
		if (!usual_options(&w))
			bpf_loop(KM_TCP_OPTIONS, syn_option, &w, 0);
	}
	if (w.sack)
		f->flags |= KM_FLOW_SACK;
	svc = bpf_map_lookup_elem(&km_services, &service);
	http = bpf_map_lookup_elem(&km_http, &service);
	if (!svc || !http)
		goto refuse;
	f->state = KM_FLOW_SYN;
	if (!(http->flags & KM_HTTP_LOCAL)) {
		f->cluster = guess_cluster(f, svc);
		if (f->cluster && guess(skb, f, w.tsval))
			return send_guess(
				skb, p, f,
				w.changed || (w.tsval && !(f->legs[0].flags & KM_LEG_TIMESTAMPS)));
	}
	if (http->all && !some_endpoint(http->all, p->family == 4)) {
		count_refusal(service, KM_REASON_NO_ENDPOINT);
		goto refuse;
	}
	be_local(f);
	f->server_end++;
	f->client_ack++;
	f->response.pos++;
	return answer_syn(skb, p, f);
refuse:
	f->flags |= KM_FLOW_IDLE;
	f->state = KM_FLOW_OPEN; /* for end_flow to take it back */
	end_flow(f);
	return bounce(skb, p, f, TCP_RST | TCP_ACK, 0, f->client_isn + 1);
}

/* The client repeats its SYN: the endpoint is silent, so another one gets it. */
__noinline int syn_again(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct leg *leg;
	__u32 tsval;

	if (!p || !f)
		return TCX_DROP;
	leg = leg_at(f, 0);
	if (p->seq != f->client_isn)
		return swallow();
	if (now_ms() - leg->since < KM_SYN_AGAIN_MS)
		return send_syn(skb, p, f, 0, f->client_isn);
	count_event(KM_EVENT_TIMEOUT);
	mark_endpoint(leg->endpoint);
	tsval = leg->flags & KM_LEG_TIMESTAMPS ? leg->tsval : 0;
	f->tried[f->tries & 3] = leg->endpoint;
	if (f->tries < 2)
		f->tries++;
	if (leg->state == KM_LEG_SYN)
		forget_leg(f, leg);
	if (!guess(skb, f, tsval)) {
		/* None is left: begin again with all of them. */
		f->tries = 0;
		f->tried[0] = f->tried[1] = f->tried[2] = 0;
		if (!guess(skb, f, tsval))
			return swallow();
	}
	return send_syn(skb, p, f, 0, f->client_isn);
}

#endif
