/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * table.h: the machine that runs compiled virtual hosts (helper/automaton) over the
 * heads of messages, in any number of pieces. It is the exact mirror of Machine
 * there, and reads the same bytes: a program lies in a slab at some offset, and all
 * offsets in it are relative to that.
 *
 * Offsets read from a slab are not trusted but masked: a wrong program gives a wrong
 * answer, never a wild read.
 */
#ifndef KM_TABLE_H
#define KM_TABLE_H

#include "program.h"

/*
 * A place in the slab, which is a multiple of size, a power of two that is not less
 * than what is read there.
 */
static __always_inline const void *at(const struct run *r, __u32 offset, __u32 size)
{
	return r->slab + (offset & (KM_SLAB - size));
}

static __always_inline __u16 word_at(const struct run *r, __u32 offset)
{
	return *(const __u16 *)at(r, offset, sizeof(__u16));
}

static __always_inline const struct action *action_of(const struct run *r, __u16 entry)
{
	return at(r, r->actions + (entry & ~KM_ACT) * sizeof(struct action), sizeof(struct action));
}

static __always_inline const struct program *program_of(const struct run *r)
{
	return at(r, r->base, 128);
}

/* Where a group is; one that is wrong is the slab's first bytes. */
static __always_inline __u32 group_at(const struct run *r, __u8 class)
{
	__u32 group = r->groups + class * sizeof(struct group);

	return group <= KM_SLAB - sizeof(struct group) ? group : 0;
}

static __always_inline const struct dimension *dimension_of(const struct run *r, __u32 dim)
{
	return at(r, r->base + program_of(r)->dims + dim * sizeof(struct dimension), 16);
}

static __always_inline __u16 *saved_of(struct machine *m, __u32 dim)
{
	return &m->saved[dim & (KM_MAX_DIMENSIONS - 1)];
}

static __always_inline bool head_seen(struct machine *m, __u8 dim)
{
	return dim != KM_NO_DIM && *saved_of(m, dim);
}

static __always_inline void stop_head(struct run *r, __u8 rule)
{
	struct machine *m = r->m;
	bool pins = rule <= KM_RULE_OPAQUE_LAST || rule >= KM_RULE_STATUS_LINE;

	m->rule = rule;
	m->kind = pins || program_of(r)->response ? KM_HEAD_PIN : KM_HEAD_REJECT;
	m->line = 0;
	m->skip = 0;
}

/* Where a field's value begins, or goes on over the join with the one before. */
static __always_inline void enter_value(struct run *r, __u8 dim, __u16 was)
{
	const struct dimension *d = dimension_of(r, dim);
	struct machine *m = r->m;
	__u16 base = d->start;

	if (was) {
		__u32 group = group_at(r, d->class);
		const struct group *g = (const void *)(r->slab + group);

		base = word_at(r, group + g->rows + 2 * (__u32)d->join + was * g->stride);
		if (base & KM_ACT)
			base = action_of(r, base)->next;
	}
	m->dim = dim;
	m->need = 0;
	m->base = base;
}

/* Whether a byte above 0x7f is part of valid UTF-8. */
static __always_inline void high_byte(struct machine *m, __u8 c)
{
	__u8 need = m->need;

	if (need && m->last + 1 == m->position && m->lo <= c && c <= m->hi) {
		m->need = need - 1;
		m->lo = 0x80;
		m->hi = 0xbf;
		m->last = m->position;
		return;
	}
	if (need || c < 0xc2 || c > 0xf4) {
		m->bad |= 1ULL << (m->dim & 63);
		return;
	}
	m->last = m->position;
	m->need = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
	m->lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
	m->hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
}

static __always_inline void emit_hits(struct run *r, __u16 number)
{
	const struct program *p = program_of(r);
	const struct list *l = at(r, r->base + p->emits + number * sizeof(*l), sizeof(*l));
	__u32 words = r->base + p->emit_words, first = l->first, n = l->n;

	for (__u32 i = 0; i < KM_HIT_WORDS; i++) {
		const struct pair *w;

		if (i >= n)
			break;
		w = at(r, words + (first + i) * sizeof(*w), sizeof(*w));
		r->m->hits[w->word & (KM_HIT_WORDS - 1)] |= w->bits;
	}
}

/* false: the number is too large. */
static __always_inline bool length_digit(struct machine *m, __u8 c)
{
	__u64 most = 922337203685477580ULL, n = m->length;
	__u8 d = c - '0';

	if (n > most || (n == most && d > 7))
		return false;
	m->length = n * 10 + d;
	return true;
}

/*
 * Where a long name ends: if its bytes follow they are read at once. true if the name
 * and the path are over then.
 */
static __always_inline bool look_ahead(struct run *r, const struct action *a)
{
	struct machine *m = r->m;
	__u32 pos = m->position + 1, n = a->bytes;
	const __u8 *bytes = r->bytes + ((pos - r->first) & (KM_MAX_HEAD - 1));

	m->position = pos;
	/* The bytes that count are the low ones. */
	if (pos + n > r->end || (*(const __u64 *)bytes ^ a->text) << ((64 - 8 * n) & 63))
		return false;
	m->position = pos + n;
	m->line = a->alt;
	return pos + n < r->end && bytes[n & 15] == ' ';
}

/* Nearly every request line ends so: then it is read at once. */
static __always_inline void hop_version(struct run *r, __u16 line)
{
	struct machine *m = r->m;
	__u32 pos = m->position + 1;
	const __u8 *bytes = r->bytes + ((pos - r->first) & (KM_MAX_HEAD - 1));

	if (pos + 10 > r->end)
		return;
	if (*(const __u64 *)bytes != 0x312e312f50545448ULL) /* HTTP/1.1 */
		return;
	if (*(const __u16 *)(bytes + 8) != 0x0a0d)
		return;
	m->flags |= KM_FLAG_MINOR1;
	m->position += 10;
	m->line = line;
}

/* A transition that is more than a new state. The position is still that of c. */
static __always_inline int act_on(struct run *r, __u16 entry, __u8 c)
{
	const struct action *a = action_of(r, entry);
	struct machine *m = r->m;
	__u32 ops = a->ops;
	__u16 left = m->line, was;

	m->flags |= a->flags;
	m->line = a->next;
	m->class = a->class;
	if (ops == OP_AHEAD) {
		if (!look_ahead(r, a))
			return 0;
		left = m->line;
		a = action_of(r, program_of(r)->path_end);
		ops = a->ops;
		m->line = a->next;
		m->class = a->class;
	}
	if (!(ops & ~(OP_SKIP | OP_HOP | OP_RUN | OP_FIELD)))
		goto common;
	if (ops & OP_SAVE) {
		*saved_of(m, m->dim) = left;
		if (m->need)
			m->bad |= 1ULL << (m->dim & 63);
		m->need = 0;
	}
	if (ops & OP_SPAN) {
		__u32 span = a->arg < KM_SPANS ? a->arg : KM_SPANS - 1;

		m->spans[span][0] = m->start;
		m->spans[span][1] = m->position;
	}
	if (ops & OP_DIM) {
		m->dim = a->dim;
		m->need = 0;
	}
	if (ops & OP_START)
		m->start = m->position;
	if (ops & OP_AFTER)
		m->start = m->position + 1;
	if (ops & OP_HIGH)
		high_byte(m, c);
	if (ops & OP_EMIT)
		emit_hits(r, a->emit);
	if (ops & OP_DIGIT && !length_digit(m, c)) {
		stop_head(r, a->arg);
		goto taken;
	}
	if (ops & OP_STATUS)
		m->status = m->status * 10 + (c - '0');
	if (ops & (OP_EMPTY | OP_FIRST | OP_ONCE | OP_ENTER)) {
		was = *saved_of(m, a->dim);
		if (ops & OP_EMPTY) {
			if (!was)
				*saved_of(m, a->dim) = a->alt;
		} else if (ops & OP_FIRST) {
			if (was) {
				m->line = a->alt;
				m->class = a->alt_class;
			}
		} else if (ops & OP_ONCE && was) {
			stop_head(r, a->arg);
			goto taken;
		} else {
			enter_value(r, a->dim, was);
		}
	}
	if (ops & OP_BASE) {
		m->line = m->base;
		m->class = dimension_of(r, m->dim)->class;
	}
	if (ops & OP_STOP)
		stop_head(r, a->arg);
	if (ops & OP_END)
		m->kind = KM_HEAD_ROUTE; /* read_head sees to the rest */
	if (ops & OP_REDO)
		m->position--;
	if (ops & OP_VERSION)
		hop_version(r, a->alt);
common:
	if (ops & OP_FIELD && ++m->fields == KM_MAX_FIELDS)
		m->line = a->alt;
	if (ops & OP_SKIP)
		m->skip = 1;
	if (ops & OP_HOP)
		m->skip = 2;
	if (ops & OP_RUN)
		m->skip = 3;
taken:
	m->position++;
	return 0;
}

#include "skip.h"

/* Transitions that are actions and are taken in one round. */
#define KM_ROUND_ACTIONS 4

/* Reads bytes until one is an action, which is returned; 0 if none was. */
static __always_inline __u32 read_bytes(struct run *r, __u8 *last)
{
	struct machine *m = r->m;
	const __u8 *slab = r->slab;
	__u32 group = group_at(r, m->class);
	const struct group *g = (const void *)(slab + group);
	__u32 rows = group + g->rows, stride = g->stride;
	__u32 pos = m->position, n = r->end - pos, line = m->line, acts = 0, i;
	const __u8 *bytes = r->bytes + ((pos - r->first) & (KM_MAX_HEAD - 1));

	/*
	 * Here a byte costs what it costs. The barriers keep clang from asking for both
	 * bounds of i each time, from adding the byte's column behind what the next byte
	 * waits for, and from moving KM_ACT to the sign to look at it.
	 */
	if (n > KM_READ_BYTES)
		n = KM_READ_BYTES;
	barrier_var(n);
	for (i = 0; i < n; i++) {
		__u32 offset, entry;

		*last = bytes[i];
		offset = rows + 2 * (__u32)g->column[*last];
		barrier_var(offset);
		offset += line * stride;
		entry = *(const __u16 *)(slab + (offset & (KM_SLAB - 2)));
		barrier_var(entry);
		if (entry >= KM_ACT) {
			acts = entry;
			break;
		}
		line = entry;
	}
	m->position = pos + i;
	m->line = line;
	return acts;
}

/* One round: skip, then read until something happens. */
static long read_some(__u32 round, struct run *r)
{
	struct machine *m = r->m;

	for (int i = 0; i < KM_ROUND_ACTIONS; i++) {
		__u32 entry;
		__u8 c = 0;

		if (m->kind || m->position >= r->end)
			return 1;
		if (m->skip) {
			if (!skip_even(r))
				return 0;
			if (skip_on(r))
				continue;
		}
		entry = read_bytes(r, &c);
		if (!entry)
			return 0;
		act_on(r, entry, c);
	}
	return 0;
}

#include "candidates.h"

/* Begin a head. */
static __always_inline void begin_head(struct machine *m, const __u8 *slab, __u32 base)
{
	struct run r = {.slab = slab, .base = base};
	const struct program *p = program_of(&r);

	__builtin_memset(m, 0, sizeof(*m));
	m->line = p->start;
	m->class = p->start_class;
	m->dim = p->method;
}

/*
 * Read the next bytes of a head: from m->position to end, in a buffer that begins
 * with the byte at position first (0 for a request, whose whole head is held).
 */
static __always_inline void read_head(struct machine *m, struct candidates *found, const __u8 *slab,
				      __u32 base, const __u8 *bytes, __u32 first, __u32 end)
{
	struct run r = {
		.m = m,
		.found = found,
		.slab = slab,
		.bytes = bytes,
		.first = first,
		.end = end,
		.base = base,
	};
	const struct program *p = program_of(&r);
	bool too_long = !p->response && end > KM_MAX_HEAD;

	if (too_long)
		r.end = KM_MAX_HEAD;
	r.groups = base + p->groups;
	r.actions = base + p->actions;
	r.skip = p->skip;
	r.other = p->other;
	r.line = p->line;
	bpf_loop(4 * KM_MAX_HEAD, read_some, &r, 0);
	if (m->kind == KM_HEAD_ROUTE)
		end_head(&r);
	if (too_long && !m->kind) {
		stop_head(&r, KM_RULE_HEAD_TOO_LONG);
		m->position = KM_MAX_HEAD + 1;
	}
}

#endif
