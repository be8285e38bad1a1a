//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * tc_egress: what a pod sends on its interface. A socket that was stamped for HTTP is
 * a flow: each packet goes to the flow's current leg, or is answered, or is made into
 * something else. Everything else is foreign, and goes on untouched.
 *
 * It answers "next", never "ok": another program on the hook has its say.
 */
#include "begin.h"
#include "forward.h"
#include "handshake.h"
#include "older.h"
#include "request.h"
#include "trace.h"

/*
 * While a leg is being opened the client's retransmissions are its timer: the SYN
 * again, then another endpoint, then 503.
 */
#define KM_SYN_RETRY_MS 150
#define KM_SYN_TRIES 2

/*
 * The next endpoint for a request whose SYNs were not answered. Where there is no other,
 * two lost packets are no reason to give up: the first one is tried once more.
 */
static __always_inline bool another_endpoint(struct flow *f, struct choice_of *to)
{
	__u32 hash = hash_addr(f->key.client, f->key.family);

	if (pick_endpoint(f, to, f->cluster, hash))
		return true;
	if (f->tries > 1)
		return false;
	f->tried[0] = 0;
	return pick_endpoint(f, to, f->cluster, hash);
}

__noinline int while_opening(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct choice_of to = {};
	struct answer *a;
	struct work *w;
	struct leg *leg;
	__u32 i, isn;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	a = &w->answer;
	__builtin_memset(a, 0, sizeof(*a));
	i = f->next_leg;
	leg = leg_at(f, i);
	isn = f->chosen - 1;
	if (!p->len || now_ms() - leg->since < KM_SYN_RETRY_MS)
		return swallow();
	count_event(KM_EVENT_TIMEOUT);
	if (leg->tries < KM_SYN_TRIES) {
		leg->tries++;
		return send_syn(skb, p, f, i, isn);
	}
	mark_endpoint(leg->endpoint);
	f->tried[f->tries & 3] = leg->endpoint;
	f->tries++;
	forget_leg(f, leg);
	if (f->tries < KM_TRIES && another_endpoint(f, &to) && new_leg(skb, f, &to, i, isn, 0)) {
		f->endpoint = to.endpoint;
		return send_syn(skb, p, f, i, isn);
	}
	give_up(f, a, p->seq + p->len);
	return GO_REPLY;
}

/* The client's end while no leg is there to take it. */
__noinline int end_without_leg(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	__u32 seq, ack, flags = TCP_ACK;

	if (!p || !f)
		return TCX_DROP;
	seq = f->server_end;
	ack = p->seq + p->len + 1;
	f->flags |= KM_FLOW_CLIENT_FIN;
	if (!(f->flags & KM_FLOW_SERVER_FIN)) {
		flags |= TCP_FIN;
		f->flags |= KM_FLOW_SERVER_FIN;
		f->server_end++;
	} else if (before(f->client_ack, f->server_end)) {
		seq = f->server_end - 1;
		flags |= TCP_FIN; /* ours was not acknowledged: it may be lost */
	}
	reset_legs(skb, p, f, 1);
	end_flow(f);
	return bounce(skb, p, f, flags, seq, ack);
}

static __always_inline bool has_parked(struct flow *f)
{
	for (__u32 i = 0; i < KM_LEGS; i++)
		if (i != f->leg && f->legs[i].state == KM_LEG_OPEN)
			return true;
	return false;
}

/* Ends the parked legs of a connection that ends; the packet is made anew. */
__noinline int end_parked(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct work *w;
	struct leg *leg;
	__u32 seq, ack;
	__u8 flags;

	if (!p || !f)
		return TCX_DROP;
	w = work_of(p);
	if (!w)
		return swallow();
	seq = p->seq;
	ack = p->ack;
	flags = p->flags & (TCP_FIN | TCP_ACK | TCP_RST);
	reset_legs(skb, p, f, 0);
	leg = leg_at(f, f->leg);
	craft_for_leg(&w->craft, f, leg, flags, seq, ack);
	link_leg(&w->craft, p, leg);
	if (craft_packet(skb, p, &w->craft))
		return swallow();
	if (flags & TCP_FIN && before(leg->sent, seq + 1 + leg->dc))
		leg->sent = seq + 1 + leg->dc;
	return bpf_redirect(skb->ifindex, leg_direction(leg));
}

/* Packets up to which heads are looked for in one packet (pipelining). */
#define KM_HEADS 16

/* What did not look like HTTP, and was held, came again alone: it is not HTTP. */
static __noinline int pin_alone(struct packet *p, struct flow *f)
{
	struct work *w = work_of(p);
	struct decision_of *d;

	if (!w)
		return swallow();
	d = &w->decision;
	__builtin_memset(d, 0, sizeof(*d));
	d->rule = KM_RULE_OPAQUE_LAST - 1;
	d->head = f->hold_base;
	d->have = f->hold_len;
	free_hold(f);
	return pin_flow(p, f, d);
}

/* The request side of a packet with payload: GO_* or TC's verdict. */
static __always_inline int client_data(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	__u32 end = p->seq + p->len;
	int verdict = GO_FORWARD;

	if (f->pin)
		return GO_FORWARD;
	/* Behind the last response nothing is a request: the endpoint refuses it. */
	if (f->flags & KM_FLOW_CLOSE && !f->pending && f->request.kind == KM_FRAME_HEAD &&
	    !(f->flags & KM_FLOW_REPLY))
		return has_leg(f) ? GO_FORWARD : GO_KILL;
	if (f->flags & KM_FLOW_SENT) {
		struct leg *leg = leg_at(f, f->leg);

		if (!before(leg->una, f->hold_base + f->hold_len + leg->dc)) {
			free_hold(f);
			f->flags &= ~KM_FLOW_SENT;
		} else if (before(p->seq, f->hold_base + f->hold_len)) {
			return GO_HELD; /* the replay was lost */
		}
	}
	if (f->request.kind != KM_FRAME_HEAD && before(end, f->request.pos))
		goto body;
	if (f->flags & KM_FLOW_REPLY && !(f->flags & KM_FLOW_CHOSEN) &&
	    !before(f->request.pos, end) && before(f->client_ack, f->server_end) &&
	    !before(f->chosen, p->seq) && before(f->chosen, end)) {
		/* The answer was lost: the same again. */
		f->server_end = f->reply_base;
		f->flags &= ~KM_FLOW_SERVER_FIN;
		f->response.pos = f->server_end;
		f->client_ack = f->server_end;
		f->request.pos = f->chosen;
		f->request.kind = KM_FRAME_HEAD;
	}
	if (!before(f->request.pos, end)) {
		/* Known bytes once more. */
		if (f->request.kind == KM_FRAME_HEAD && f->hold && !(f->flags & KM_FLOW_SENT)) {
			if (f->flags & KM_FLOW_HELD)
				return bounce(skb, p, f, TCP_ACK, f->server_end, f->request.pos);
			/* Not from the first byte on: a probe for what was sent last. */
			if (p->seq != f->hold_base)
				return swallow();
			return pin_alone(p, f);
		}
		if (f->request.kind != KM_FRAME_HEAD) {
			if (follow_body(skb, p, &f->request, p->seq, end))
				return GO_KILL;
			goto body;
		}
		if (f->flags & KM_FLOW_IDLE)
			return bounce(skb, p, f, TCP_ACK, f->server_end, f->request.pos);
		return GO_FORWARD;
	}
	if (before(f->request.pos, p->seq))
		return swallow(); /* what comes before was dropped, and will be repeated */
	if (f->request.kind != KM_FRAME_HEAD) {
		if (!follow_length(&f->request, end) &&
		    follow_body(skb, p, &f->request, p->seq, end))
			return GO_KILL;
		if (f->request.kind != KM_FRAME_HEAD || !before(f->request.pos, end))
			goto body;
	}
	for (int i = 0; i < KM_HEADS; i++) {
		verdict = take_head(skb, p, f);
		if (verdict != GO_ON)
			break;
	}
	if (verdict == GO_ON || verdict == GO_PREFIX)
		return send_prefix(skb, p, f);
	return verdict;
body:
	/* The body of a request that was answered here is read, and forgotten. */
	if (f->flags & KM_FLOW_REPLY)
		return bounce(skb, p, f, TCP_ACK, f->server_end, end);
	return GO_FORWARD;
}

static __always_inline int client_packet(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	__u32 end = p->seq + p->len;
	int verdict;

	if (p->flags & TCP_SYN) {
		if (f->state == KM_FLOW_SYN)
			return syn_again(skb, p, f);
		if (f->flags & KM_FLOW_LOCAL)
			return answer_syn(skb, p, f);
		return f->flags & (KM_FLOW_REBOUND | KM_FLOW_IDLE) ? swallow() : GO_FORWARD;
	}
	if (p->flags & TCP_ACK && before(f->client_ack, p->ack))
		f->client_ack = p->ack;
	f->client_window = p->window;
	if (before(f->client_end, end))
		f->client_end = end;
	if (p->flags & TCP_RST) {
		bool alone = has_leg(f) && !has_parked(f) && f->next_leg == KM_LEGS;

		end_flow(f);
		if (alone) {
			leg_at(f, f->leg)->state = KM_LEG_DEAD;
			return GO_FORWARD;
		}
		reset_legs(skb, p, f, 1);
		return swallow();
	}
	if (f->state == KM_FLOW_SYN)
		return swallow();
	if (f->next_leg < KM_LEGS)
		return while_opening(skb, p, f);
	if (p->len) {
		if (f->flags & KM_FLOW_SERVER_FIN && f->flags & KM_FLOW_IDLE &&
		    !(f->flags & KM_FLOW_REPLY && before(f->client_ack, f->server_end)))
			return bounce(skb, p, f, TCP_ACK, f->server_end, end);
		verdict = client_data(skb, p, f);
		if (verdict != GO_FORWARD)
			return verdict;
	} else if (f->flags & KM_FLOW_IDLE && !(p->flags & TCP_FIN)) {
		/* A keepalive probe repeats a byte that is acknowledged. */
		if (before(p->seq, f->client_end))
			return bounce(skb, p, f, TCP_ACK, f->server_end, f->client_end);
		return swallow();
	}
	if (p->flags & TCP_FIN) {
		if (!p->len && has_leg(f) && f->hold && f->flags & KM_FLOW_HELD &&
		    !(f->flags & KM_FLOW_SENT) && p->seq == f->request.pos) {
			/* Half of a head is no request: the end is where it began. */
			free_hold(f);
			leg_at(f, f->leg)->dc = leg_at(f, f->leg)->sent - p->seq;
			f->flags |= KM_FLOW_REBOUND;
		}
		if (!has_leg(f) && f->state != KM_FLOW_CLOSED)
			return end_without_leg(skb, p, f);
		if (f->flags & KM_FLOW_IDLE)
			return bounce(skb, p, f, TCP_ACK, f->server_end, end + 1);
		/* Behind bytes that were dropped it comes again, with them. */
		if (!p->len && before(leg_at(f, f->leg)->sent, end + leg_at(f, f->leg)->dc))
			return swallow();
		if (!(p->clear & TCP_FIN)) {
			f->flags |= KM_FLOW_CLIENT_FIN;
			if (f->flags & KM_FLOW_SERVER_FIN)
				end_flow(f);
		}
	}
	if (!p->len && f->flags & (KM_FLOW_CLIENT_FIN | KM_FLOW_SERVER_FIN) && has_parked(f))
		return end_parked(skb, p, f);
	return GO_FORWARD;
}

/*
 * Whether the socket of a packet is none of an application's: it is in TIME_WAIT, or it
 * is the kernel's own for packets that answer nobody, whose state is CLOSE.
 */
static __always_inline bool is_nobodys(const struct bpf_sock *sk)
{
	__u32 state = sk->state;

	return state == BPF_TCP_TIME_WAIT || state == BPF_TCP_NEW_SYN_RECV ||
	       state == BPF_TCP_CLOSE;
}

/*
 * The flow of a packet: by its socket's stamp, else (TIME_WAIT and RST have no socket of
 * their own) by its tuple. NULL: not ours.
 */
static __noinline struct flow *flow_of(struct __sk_buff *skb, struct packet *p, struct stamp *stamp,
				       bool *self, bool *busy)
{
	struct flow_key key = {};
	struct flow_ref *ref;
	struct flow *f;

	if (stamp) {
		if (!(p->flags & TCP_SYN) || stamp->flow.generation) {
			f = lock_ref(stamp->flow.slot, stamp->flow.generation);
			if (f)
				return f;
			if (is_there(stamp->flow.slot, stamp->flow.generation)) {
				*busy = true;
				return NULL;
			}
			if (!(p->flags & TCP_SYN)) {
				count_event(KM_EVENT_LOST);
				return NULL;
			}
		}
	} else {
		*self = is_leg_port(p->dport);
		if (p->flags & TCP_SYN)
			return NULL;
	}
	key.pod = pod_of(skb);
	key.family = p->family;
	__builtin_memcpy(key.client, p->src, 16);
	__builtin_memcpy(key.vip, p->dst, 16);
	key.client_port = p->sport;
	key.vip_port = p->dport;
	ref = bpf_map_lookup_elem(&km_tuples, &key);
	if (!stamp)
		return ref ? lock_ref(ref->slot, ref->generation) : NULL;
	if (ref) {
		/* The same tuple anew: the old connection is over, whatever we saw of it. */
		f = lock_ref(ref->slot, ref->generation);
		if (f) {
			end_flow(f);
			unlock_flow(f);
		}
	}
	f = new_flow(skb, &key);
	if (!f)
		return NULL;
	f->service = stamp->service;
	stamp->flow.slot = f->slot;
	stamp->flow.generation = f->generation;
	return f;
}

/*
 * What the pod sends as the endpoint of its own leg comes in again, where tc_ingress
 * takes it as any other endpoint's.
 */
static __noinline int send_to_self(struct __sk_buff *skb, struct packet *p)
{
	struct leg_key key = {.family = p->family, .port = p->sport, .leg_port = p->dport};

	key.pod = pod_of(skb);
	__builtin_memcpy(key.endpoint, p->src, 16);
	if (!bpf_map_lookup_elem(&km_legs, &key))
		return TCX_NEXT;
	swap_link(skb);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline int egress(struct __sk_buff *skb)
{
	struct limits *l = limits();
	bool self = false, busy = false, others = false;
	struct stamp *stamp = NULL;
	struct bpf_sock *sk;
	struct packet *p;
	struct flow *f = NULL;
	struct work *w;
	int verdict;

	if (!l || is_foreign(skb, true, !l->outward))
		return TCX_NEXT;
	sk = skb->sk;
	if (sk) {
		stamp = bpf_sk_storage_get(&km_stamps, sk, NULL, 0);
		others = stamp ? !(stamp->flags & KM_STAMP_HTTP) : !is_nobodys(sk);
	}
	/* It may be an answer to the pod itself. */
	if (others && !l->outward)
		return TCX_NEXT;
	w = work_at(1);
	if (!w)
		return TCX_NEXT;
	p = &w->packet;
	if (!read_packet(skb, p, true))
		return TCX_NEXT;
	if (others)
		self = is_leg_port(p->dport);
	else
		f = flow_of(skb, p, stamp, &self, &busy);
	if (busy)
		return swallow(); /* the client repeats it */
	if (!f)
		return self ? send_to_self(skb, p) : TCX_NEXT;
	if (f->flags & KM_FLOW_TRACE)
		mark_packet(&w->mark, p, f->leg);
	verdict = f->state == KM_FLOW_FREE ? first_syn(skb, p, f) : client_packet(skb, p, f);
	if (verdict == GO_REPLY)
		verdict = send_reply(skb, p, f);
	else if (verdict == GO_OPEN)
		verdict = open_leg(skb, p, f);
	else if (verdict == GO_HELD)
		verdict = send_held(skb, p, f);
	else if (verdict == GO_FORWARD)
		verdict = has_leg(f) || !(f->flags & KM_FLOW_IDLE) ? to_leg(skb, p, f) : swallow();
	if (verdict == GO_KILL)
		verdict = kill_flow(skb, p, f);
	if (f->state == KM_FLOW_CLOSED)
		check_over(f);
	if (f->flags & KM_FLOW_TRACE)
		trace_packet(f, p, verdict == TCX_NEXT ? KM_VERDICT_FORWARD : KM_VERDICT_CRAFT);
	unlock_flow(f);
	return verdict;
}

TC_PROGRAM(tc_egress, egress)

char _license[] SEC("license") = "Dual BSD/GPL";
