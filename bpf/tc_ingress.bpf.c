//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * tc_ingress: what comes to a pod. What goes to a port of a leg is translated back
 * into the client's connection, if the leg is the current one, and answered here if it
 * is parked. Everything else is foreign: one comparison, and it goes on.
 */
#include "older.h"
#include "hint.h"
#include "response.h"
#include "synack.h"
#include "trace.h"
#include "window.h"

#define GO_REPLY 104 /* the answer is ready to be sent */

/* SYNs to one endpoint that challenge ACKs are answered with. */
#define KM_CHALLENGES 4

__noinline int answer_leg(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 i,
			  __u32 flags)
{
	struct work *w;
	struct leg *leg;
	__u32 seq;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	leg = leg_at(f, i);
	if (!w)
		return TCX_DROP;
	seq = flags & TCP_RST && p->flags & TCP_ACK ? p->ack : leg->sent;
	craft_for_leg(&w->craft, f, leg, flags, 0, 0);
	w->craft.tcp.seq = bpf_htonl(seq);
	w->craft.tcp.ack = bpf_htonl(leg->nxt);
	link_leg(&w->craft, p, leg);
	if (craft_packet(skb, p, &w->craft))
		return TCX_DROP;
	return bpf_redirect(skb->ifindex, leg_direction(leg));
}

/* A leg that is not the current one: it is kept alive, and its end is noticed. */
__noinline int parked_packet(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 i)
{
	struct leg *leg;

	if (!p || !f)
		return TCX_DROP;
	leg = leg_at(f, i);
	if (leg->state != KM_LEG_OPEN)
		return p->flags & TCP_RST ? TCX_DROP : answer_leg(skb, p, f, i, TCP_RST | TCP_ACK);
	if (p->flags & TCP_RST) {
		if (p->seq == leg->nxt)
			end_leg(f, leg);
		return TCX_DROP;
	}
	if (p->flags & TCP_ACK && !before(p->ack, leg->una) && !before(leg->sent, p->ack)) {
		leg->una = p->ack;
		leg->window = p->window;
	}
	if (p->flags & TCP_FIN) {
		end_leg(f, leg);
		leg->nxt = p->seq + p->len + 1;
		return answer_leg(skb, p, f, i, TCP_RST | TCP_ACK);
	}
	if (p->len || before(p->seq, leg->nxt))
		return answer_leg(skb, p, f, i, TCP_ACK);
	return TCX_DROP;
}

/* A SYN-ACK: the leg is open. */
__noinline int leg_opened(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 i)
{
	struct syn_options o = {.skb = skb, .scale = 255, .mss = 536};
	struct leg *leg;

	if (!p || !f)
		return TCX_DROP;
	leg = leg_at(f, i);
	o.at = p->l4 + 20;
	o.end = p->l4 + p->tcp_len;
	if (!usual_synack(skb, p, &o))
		bpf_loop(KM_TCP_OPTIONS, synack_option, &o, 0);
	leg->state = KM_LEG_OPEN;
	leg->mss = o.mss < 128 ? 128 : o.mss;
	leg->una = p->ack;
	leg->nxt = p->seq + 1;
	leg->scale = o.scale == 255 ? 0 : o.scale;
	if (o.scale == 255)
		leg->flags |= KM_LEG_UNSCALED;
	leg->window = p->window;
	bpf_skb_load_bytes(skb, 6, leg->mac, 6);
	if (f->state != KM_FLOW_SYN) {
		leg->window = p->window >> leg->scale; /* a SYN's window is not scaled */
		if (!leg->window)
			leg->window = 1;
		return 0;
	}
	f->mss = leg->mss;
	f->state = KM_FLOW_OPEN;
	f->flags |= KM_FLOW_FIRST;
	f->tries = 0;
	f->tried[0] = f->tried[1] = f->tried[2] = 0;
	f->scale = f->client_scale == 255 ? 255 : o.scale;
	if (f->scale == 255)
		f->client_scale = 255;
	if (!o.sack)
		f->flags &= ~KM_FLOW_SACK;
	if (!o.timestamps)
		leg->flags &= ~KM_LEG_TIMESTAMPS;
	if (leg->dc)
		f->flags |= KM_FLOW_REBOUND;
	f->server_end = leg->nxt;
	f->client_ack = leg->nxt;
	f->response.pos = leg->nxt;
	return 0;
}

/* The SYN was refused: another endpoint, then 503, or what the endpoint said. */
__noinline int leg_refused(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 i)
{
	struct choice_of to = {};
	struct answer *a;
	struct work *w;
	struct leg *leg;
	__u32 isn, tsval;
	bool first;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return TCX_DROP;
	a = &w->answer;
	__builtin_memset(a, 0, sizeof(*a));
	leg = leg_at(f, i);
	first = f->state == KM_FLOW_SYN;
	isn = first ? f->client_isn : f->chosen - 1;
	tsval = first && leg->flags & KM_LEG_TIMESTAMPS ? leg->tsval : 0;
	count_event(KM_EVENT_REFUSED);
	mark_endpoint(leg->endpoint);
	f->tried[f->tries & 3] = leg->endpoint;
	f->tries++;
	if (f->tries < KM_TRIES &&
	    pick_endpoint(f, &to, f->cluster, hash_addr(f->key.client, f->key.family))) {
		hand_on(leg, &to);
		forget_leg(f, leg);
		if (new_leg(skb, f, &to, i, isn, tsval)) {
			f->endpoint = to.endpoint;
			return send_syn(skb, p, f, i, isn);
		}
		first = false;
	}
	if (first)
		return 0; /* the client is told as the endpoint did */
	forget_leg(f, leg);
	give_up(f, a, f->client_end);
	return GO_REPLY;
}

/* A leg that was opened for a request gets it. */
static __always_inline int serve_leg(struct __sk_buff *skb, struct packet *p, struct flow *f,
				     __u32 i)
{
	struct leg *leg = leg_at(f, i);

	leg->ds = f->server_end - leg->nxt;
	f->leg = i;
	f->next_leg = KM_LEGS;
	f->tries = 0;
	f->tried[0] = f->tried[1] = f->tried[2] = 0;
	if (!f->hold) {
		/* The client repeats the request, and it will find the leg parked. */
		f->flags |= KM_FLOW_IDLE;
		return answer_leg(skb, p, f, i, TCP_ACK);
	}
	f->flags &= ~(KM_FLOW_IDLE | KM_FLOW_CHOSEN | KM_FLOW_REPLY);
	leg->flags |= KM_LEG_SERVED;
	leg->requests++;
	f->response.pos = f->server_end;
	if (!f->pin) {
		f->requests++;
		f->pending = 1;
		f->heads = f->opening_head;
		count_running(leg, 1);
	}
	return send_held(skb, p, f);
}

/* What answers our SYN. */
__noinline int opening_packet(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 i)
{
	struct leg *leg;

	if (!p || !f)
		return TCX_DROP;
	leg = leg_at(f, i);
	if (!(p->flags & TCP_ACK))
		return TCX_DROP; /* nobody opens a connection to a leg */
	if (p->ack != leg->sent) {
		if (p->flags & TCP_RST)
			return TCX_DROP; /* not of this SYN */
		/*
		 * A challenge ACK: the endpoint still has the tuple. A sequence number
		 * above all that it expects is taken (RFC 6191 and 9293, section 3.6.1),
		 * unless there is a timestamp that is older than what it knows.
		 */
		if (p->flags & TCP_SYN || leg->tries >= KM_CHALLENGES)
			return TCX_DROP;
		count_event(KM_EVENT_CHALLENGE);
		leg->tries++;
		{
			__u32 isn = f->state == KM_FLOW_SYN ? f->client_isn : f->chosen - 1;

			if (leg->flags & KM_LEG_TIMESTAMPS) {
				leg->flags &= ~KM_LEG_TIMESTAMPS;
				send_no_timestamps(f);
			}
			leg->dc = p->ack + 1000000 - isn;
			leg->sent = isn + leg->dc + 1;
			leg->una = leg->sent - 1;
			return send_syn(skb, p, f, i, isn);
		}
	}
	if (p->flags & TCP_RST) {
		int verdict = leg_refused(skb, p, f, i);

		if (verdict)
			return verdict;
		end_flow(f);
		leg->state = KM_LEG_DEAD;
		leg->nxt = p->seq;
		return 0;
	}
	if (!(p->flags & TCP_SYN))
		return TCX_DROP;
	if (f->state == KM_FLOW_SYN) {
		leg_opened(skb, p, f, i);
		return 0;
	}
	leg_opened(skb, p, f, i);
	return serve_leg(skb, p, f, i);
}

/*
 * An endpoint that ends while no request runs on its leg, or none that it has seen: the
 * client need not know. true: it does not.
 */
static __always_inline bool hides_end(struct flow *f, struct leg *leg, __u32 end)
{
	if (f->pin || f->flags & (KM_FLOW_CLOSE | KM_FLOW_CLIENT_FIN | KM_FLOW_FIRST) ||
	    !f->requests || f->response.kind != KM_FRAME_HEAD || f->response.pos != end ||
	    f->flags & KM_FLOW_RESPONSE || before(leg->nxt, end - leg->ds))
		return false;
	if (!f->pending)
		return f->request.kind == KM_FRAME_HEAD;
	if (f->pending > 1 || f->flags & KM_FLOW_HELD || before(f->running + leg->dc, leg->una))
		return false;
	/* It has not acknowledged a byte of the request: the client repeats it all. */
	f->pending = 0;
	count_running(leg, -1);
	f->request.kind = KM_FRAME_HEAD;
	f->request.pos = f->running;
	return true;
}

__noinline int to_client(struct __sk_buff *skb, struct packet *p, struct flow *f, __u32 i)
{
	struct translation t = {};
	struct leg *leg;

	if (!p || !f)
		return TCX_DROP;
	leg = leg_at(f, i);
	t.p = p;
	t.sport = f->key.vip_port;
	t.dport = f->key.client_port;
	t.seq = leg->ds;
	t.ack = -leg->dc;
	t.window = p->window;
	t.flags = p->flags & ~p->clear;
	__builtin_memcpy(t.addr, f->key.vip, 16);
	__builtin_memcpy(t.other, f->key.client, 16);
	if (!(p->flags & TCP_SYN)) {
		leg->window = p->window;
		if (leg->scale != f->scale && f->scale != 255)
			t.window = p->window ? window_for_client(f, leg) : 0;
		if (is_between_requests(f, leg))
			t.window = least_window(f, t.window);
	}
	if (leg->dc && p->tcp_len > 20 && p->flags & TCP_ACK)
		translate_sack(skb, p, -leg->dc);
	translate(skb, &t, false);
	return TCX_NEXT;
}

static __always_inline int current_packet(struct __sk_buff *skb, struct packet *p, struct flow *f,
					  struct leg *leg, __u32 i)
{
	__u32 begin = p->seq + leg->ds, end = begin + p->len;

	/* nxt is behind what came without a gap; the client knows of gaps that were filled. */
	if (p->flags & (TCP_RST | TCP_FIN) && before(leg->nxt, f->client_ack - leg->ds))
		leg->nxt = f->client_ack - leg->ds;
	if (p->flags & TCP_RST) {
		/* Another sequence number is the client's to judge (RFC 5961, section 3). */
		if (p->seq == leg->nxt) {
			if (hides_end(f, leg, begin)) {
				end_leg(f, leg);
				f->flags |= KM_FLOW_IDLE;
				count_event(KM_EVENT_HIDDEN_END);
				return TCX_DROP;
			}
			leg->state = KM_LEG_DEAD;
			end_flow(f);
		}
		return to_client(skb, p, f, i);
	}
	if (p->flags & TCP_ACK && before(leg->una, p->ack) && !before(leg->sent, p->ack))
		leg->una = p->ack;
	if (f->flags & KM_FLOW_SENT && !(f->flags & KM_FLOW_RESPONSE) &&
	    !before(leg->una, f->hold_base + f->hold_len + leg->dc)) {
		free_hold(f); /* of a connection that may be idle from now on */
		f->flags &= ~KM_FLOW_SENT;
	}
	if (p->len && !f->pin && before(f->response.pos, end + 1) &&
	    follow_response(skb, p, f, begin))
		return TCX_DROP;
	if (before(leg->nxt, p->seq + p->len) && !before(leg->nxt, p->seq))
		leg->nxt = p->seq + p->len;
	if (before(f->server_end, end))
		f->server_end = end;
	if (p->flags & TCP_FIN) {
		if (hides_end(f, leg, end)) {
			if (f->client_ack == f->server_end) {
				leg->nxt++;
				end_leg(f, leg);
				f->flags |= KM_FLOW_IDLE;
				count_event(KM_EVENT_HIDDEN_END);
				return answer_leg(skb, p, f, i, TCP_RST | TCP_ACK);
			}
			/* The endpoint may still have to repeat what the client has not got. */
			leg->flags |= KM_LEG_CLOSING;
			if (!p->len)
				return TCX_DROP;
			p->clear |= TCP_FIN;
			return to_client(skb, p, f, i);
		}
		if (leg->nxt == p->seq + p->len)
			leg->nxt++;
		if (f->server_end == end)
			f->server_end++;
		f->flags |= KM_FLOW_SERVER_FIN;
		if (f->flags & KM_FLOW_CLIENT_FIN)
			end_flow(f);
	}
	return to_client(skb, p, f, i);
}

/* A packet of a leg of f. */
static __always_inline int leg_packet(struct __sk_buff *skb, struct packet *p, struct flow *f,
				      __u32 i)
{
	struct leg *leg = leg_at(f, i);
	int verdict;

	if (leg->state == KM_LEG_SYN) {
		verdict = opening_packet(skb, p, f, i);
		if (verdict)
			return verdict;
		return to_client(skb, p, f, i);
	}
	if (i != f->leg || f->flags & KM_FLOW_IDLE)
		return parked_packet(skb, p, f, i);
	if (leg->state == KM_LEG_DEAD && f->state != KM_FLOW_CLOSED)
		return parked_packet(skb, p, f, i);
	return current_packet(skb, p, f, leg, i);
}

static __always_inline int ingress(struct __sk_buff *skb)
{
	struct packet *p;
	struct flow *f;
	struct work *w;
	bool busy = false;
	__u32 i = 0;
	int verdict;

	if (is_foreign(skb, false, false))
		return TCX_NEXT;
	w = work_at(0);
	if (!w)
		return TCX_NEXT;
	p = &w->packet;
	if (!read_packet(skb, p, false))
		return TCX_NEXT;
	f = leg_of(skb, p, &i, &busy);
	if (!f) /* the pod's own TCP would answer with RST; the endpoint repeats it */
		return busy ? TCX_DROP : TCX_NEXT;
	if (f->flags & KM_FLOW_TRACE)
		mark_packet(&w->mark, p, i);
	verdict = leg_packet(skb, p, f, i);
	if (verdict == GO_REPLY)
		verdict = send_reply(skb, p, f);
	if (f->state == KM_FLOW_CLOSED)
		check_over(f);
	if (f->flags & KM_FLOW_TRACE)
		trace_packet(f, p,
			     verdict == TCX_DROP   ? KM_VERDICT_DROP
			     : verdict == TCX_NEXT ? KM_VERDICT_FORWARD
						   : KM_VERDICT_CRAFT);
	unlock_flow(f);
	return verdict;
}

TC_PROGRAM(tc_ingress, ingress)

char _license[] SEC("license") = "Dual BSD/GPL";
