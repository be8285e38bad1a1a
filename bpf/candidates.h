/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * candidates.h: what is decided at the end of a head. Part of table.h: from the states
 * in which the dimensions stopped to the routes that match, in order.
 */
#ifndef KM_CANDIDATES_H
#define KM_CANDIDATES_H

/* Comparing two spans of a head, which is held from its first byte on. */
struct comparison {
	const __u8 *bytes;
	__u32 a;
	__u32 b;
	__u32 n;
	__u32 differs;
};

static long compare_byte(__u32 i, struct comparison *c)
{
	if (i >= c->n)
		return 1;
	c->differs = c->bytes[(c->a + i) & (KM_MAX_HEAD - 1)] !=
		     c->bytes[(c->b + i) & (KM_MAX_HEAD - 1)];
	return c->differs;
}

static __always_inline bool same_span(struct run *r, int x, int y)
{
	const struct machine *m = r->m;
	struct comparison c = {
		.bytes = r->bytes,
		.a = m->spans[x][0],
		.b = m->spans[y][0],
		.n = m->spans[x][1] - m->spans[x][0],
	};

	if (c.n != (__u32)(m->spans[y][1] - m->spans[y][0]))
		return false;
	bpf_loop(KM_MAX_HEAD, compare_byte, &c, 0);
	return !c.differs;
}

static __always_inline const struct record *record_of(const struct run *r, __u16 number)
{
	return at(r, r->base + program_of(r)->records + number * sizeof(struct record), 16);
}

/* The set of routes that a dimension leaves. */
static __always_inline const struct record *left_by(const struct run *r, __u32 dim)
{
	const struct dimension *d = dimension_of(r, dim);
	const struct record *set;
	struct machine *m = r->m;
	__u16 state = *saved_of(m, dim), number = d->missing;

	if (state)
		number = word_at(r, r->base + program_of(r)->finals + 2 * (__u32)state);
	set = record_of(r, number);
	if (m->bad >> (dim & 63) & 1)
		set = record_of(r, set->bad);
	return set;
}

/* Nested loops are bpf_loop: each body is verified once, not for each round outside. */
static long add_pair(__u32 i, struct run *r)
{
	struct walk *w = &r->found->pairs;
	const struct pair *p = at(r, w->at, sizeof(*p));
	__u32 word = p->word & (KM_ROUTE_WORDS - 1);
	__u64 known = r->found->summary >> word & 1;

	r->found->words[word] = (r->found->words[word] & -known) | p->bits;
	r->found->summary |= 1ULL << word;
	w->at += sizeof(*p);
	return 0;
}

static __always_inline void add_pairs(struct run *r, __u32 first, __u32 n)
{
	r->found->pairs.at = r->base + program_of(r)->pairs + first * sizeof(struct pair);
	bpf_loop(n & (2 * KM_ROUTE_WORDS - 1), add_pair, r, 0);
}

/* The number of the lowest bit that is set in v, which is not 0. */
static __always_inline __u32 lowest(__u64 v)
{
	v = ~v & (v - 1); /* the bits below it, to be counted */
	/* Else the compiler sees what this is, and makes a table in a map of it. */
	asm volatile("" : "+r"(v));
	v -= v >> 1 & 0x5555555555555555ULL;
	v = (v & 0x3333333333333333ULL) + (v >> 2 & 0x3333333333333333ULL);
	v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (v * 0x0101010101010101ULL >> 56) & 63;
}

/* The routes of one hit of the path, or the step to the next word of hits. */
static long add_hit(__u32 i, struct run *r)
{
	const struct program *p = program_of(r);
	struct walk *w = &r->found->outer;
	const struct list *l;

	if (!w->rest) {
		w->word++;
		if (w->word >= p->n_hit_words)
			return 1;
		w->rest = r->m->hits[w->word & (KM_HIT_WORDS - 1)];
		return 0;
	}
	l = at(r, r->base + p->path_hits + (w->word * 64 + lowest(w->rest)) * sizeof(*l),
	       sizeof(*l));
	w->rest &= w->rest - 1;
	add_pairs(r, l->first, l->n);
	return 0;
}

/* One flag that a candidate's route asks about, or the step to the next candidate. */
static long check_hits(__u32 i, struct run *r)
{
	const struct program *p = program_of(r);
	struct walk *w = &r->found->inner;
	const struct list *l;
	__u32 c, flag;
	__u64 wrong;

	if (!w->n) {
		if (!w->rest)
			return 1;
		w->bit = lowest(w->rest);
		w->rest &= w->rest - 1;
		l = at(r, r->base + p->route_conds + (w->word * 64 + w->bit) * sizeof(*l),
		       sizeof(*l));
		w->at = r->base + p->conds + 4 * l->first;
		w->n = l->n;
		return 0;
	}
	c = *(const __u32 *)at(r, w->at, 4);
	flag = c & ~(1U << 31);
	wrong = (r->m->hits[(flag / 64) & (KM_HIT_WORDS - 1)] >> (flag % 64) ^ c >> 31) & 1;
	r->found->words[w->word & (KM_ROUTE_WORDS - 1)] &= ~(wrong << (w->bit & 63));
	w->at += 4;
	w->n--;
	return 0;
}

/* Dimensions that are looked at without a loop's calls: few routes ask for more. */
#define KM_FEW 6

static long and_dimension(__u32 d, struct run *r)
{
	struct walk *w = &r->found->inner;

	if (d != program_of(r)->path)
		w->rest &= *(const __u64 *)at(r, w->at + 8 * left_by(r, d)->at, 8);
	return !w->rest;
}

/* One word of candidates: all dimensions but the path. */
static long and_word(__u32 i, struct run *r)
{
	const struct program *p = program_of(r);
	struct walk *outer = &r->found->outer, *inner = &r->found->inner;
	__u32 word;

	if (!outer->rest)
		return 1;
	word = lowest(outer->rest) & (KM_ROUTE_WORDS - 1);
	outer->rest &= outer->rest - 1;
	inner->word = word;
	inner->n = 0;
	inner->at = r->base + p->dense + 8 * word;
	inner->rest = r->found->words[word];
	if (p->n_asked <= KM_FEW) {
		for (__u32 d = 0; d < KM_FEW; d++)
			if (d >= p->n_asked || and_dimension(d, r))
				break;
	} else {
		bpf_loop(p->n_asked, and_dimension, r, 0);
	}
	r->found->words[word] = inner->rest;
	if (p->has_conds)
		bpf_loop(64 * (KM_MAX_CONDS + 1) + 1, check_hits, r, 0);
	return 0;
}

/* What a dimension says beside its routes. Hits of one that is not UTF-8 do not count. */
static __noinline int forget_hits(struct run *r, __u32 d)
{
	const struct dimension *dim = dimension_of(r, d);
	__u32 first = dim->hit_first, end = dim->hit_end;

	for (__u32 k = 0; k < KM_HIT_WORDS; k++)
		r->m->hits[k] &= (__u64)(k - first < end - first) - 1;
	return 0;
}

static long sum_up(__u32 d, struct run *r)
{
	r->m->flags |= left_by(r, d)->flags;
	if (r->m->bad >> (d & 63) & 1)
		forget_hits(r, d);
	return 0;
}

static __noinline int match_routes(struct run *r)
{
	const struct program *p = program_of(r);
	const struct record *set;
	struct walk *w = &r->found->outer;

	if (p->n_told <= KM_FEW) {
		for (__u32 d = 0; d < KM_FEW; d++) {
			if (d >= p->n_told)
				break;
			sum_up(d, r);
		}
	} else {
		bpf_loop(p->n_told, sum_up, r, 0);
	}
	if (!p->words)
		return 0;
	set = left_by(r, p->path);
	if (set->count == 1) {
		__u32 word = set->at & (KM_ROUTE_WORDS - 1);

		r->found->words[word] = set->bits;
		r->found->summary = 1ULL << word;
	} else {
		add_pairs(r, set->at, set->count);
	}
	if (p->n_hit_words) {
		w->word = 0;
		w->rest = r->m->hits[0];
		bpf_loop(KM_HIT_WORDS * 65, add_hit, r, 0);
	}
	w->rest = r->found->summary;
	and_word(0, r);
	if (w->rest)
		bpf_loop(KM_ROUTE_WORDS, and_word, r, 0);
	return 0;
}

/* The head is whole: what no single field could decide, then the routes. */
static __noinline int end_head(struct run *r)
{
	const struct program *p = program_of(r);
	struct machine *m = r->m;
	bool absolute = m->flags & KM_FLAG_ABSOLUTE, minor1 = m->flags & KM_FLAG_MINOR1;
	bool chunked = head_seen(m, p->coding);

	if (!p->response) {
		if (!head_seen(m, p->host)) {
			if (absolute || minor1) {
				stop_head(r, KM_RULE_HOST_MISSING);
				return 0;
			}
		} else if (absolute && !same_span(r, KM_SPAN_AUTHORITY, KM_SPAN_HOST)) {
			stop_head(r, KM_RULE_HOST_DIFFERS);
			return 0;
		}
	}
	if (chunked && head_seen(m, p->length)) {
		stop_head(r, KM_RULE_TE_WITH_LENGTH);
		return 0;
	}
	if (chunked && !minor1) {
		stop_head(r, KM_RULE_TE_IN_1_0);
		return 0;
	}
	if (p->response && m->status == 101) {
		stop_head(r, KM_RULE_SWITCHING);
		return 0;
	}
	match_routes(r);
	m->line = 0;
	m->kind = KM_HEAD_ROUTE;
	return 0;
}

#endif
