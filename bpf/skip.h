/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * skip.h: eight bytes at once, where the table says that they change nothing. Part of
 * table.h.
 */
#ifndef KM_SKIP_H
#define KM_SKIP_H

#define KM_ONES 0x0101010101010101ULL
#define KM_TOPS 0x8080808080808080ULL

/* Bytes of v that are 0, at least the lowest of them, by their top bits. */
static __always_inline __u64 zeros(__u64 v)
{
	return (v - KM_ONES) & ~v;
}

/* Bytes that a value's even state cannot skip: CTL and what is not ASCII. */
static __always_inline __u64 value_stops(__u64 v)
{
	return (((v - 0x20 * KM_ONES) & ~v) | zeros(v ^ 0x7f * KM_ONES) | v) & KM_TOPS;
}

static __always_inline __u64 target_stops(__u64 v)
{
	return (((v - 0x21 * KM_ONES) & ~v) | zeros(v ^ 0x7f * KM_ONES) | zeros(v ^ '#' * KM_ONES) |
		zeros(v ^ '&' * KM_ONES) | zeros(v ^ '?' * KM_ONES) | v) &
	       KM_TOPS;
}

/* Bytes of v, none of them above 0x7f, that are from lo to hi, by their top bits. */
static __always_inline __u64 range(__u64 v, __u64 lo, __u64 hi)
{
	return (v + (0x80 - lo) * KM_ONES) & ~(v + (0x7f - hi) * KM_ONES);
}

/* All but letters, digits, "-" and ".". */
static __always_inline __u64 run_stops(__u64 v)
{
	__u64 low = v & ~KM_TOPS;
	__u64 plain = range(low | 0x20 * KM_ONES, 'a', 'z') | range(low, '-', '.') |
		      range(low, '0', '9');

	return (~plain | v) & KM_TOPS;
}

/* Bytes read by one call of read_some: words that are skipped, bytes that are not. */
#define KM_SKIP_WORDS 16
#define KM_READ_BYTES 64

/* Skips from m->position on; false if there may be more to skip. */
static __always_inline bool skip_even(struct run *r)
{
	struct machine *m = r->m;
	__u8 kind = m->skip;
	__u32 pos = m->position;

	for (int i = 0; i < KM_SKIP_WORDS; i++) {
		__u64 v, stops;

		if (pos + 8 > r->end) {
			m->position = pos;
			m->skip = 0;
			return true;
		}
		v = *(const __u64 *)(r->bytes + ((pos - r->first) & (KM_MAX_HEAD - 1)));
		stops = kind == 1 ? value_stops(v) : kind == 2 ? target_stops(v) : run_stops(v);
		if (stops) {
			/* The bytes below the lowest stop are whole in stops ^ (stops - 1). */
			stops = (stops ^ (stops - 1)) >> 7;
			m->position = pos + (((stops & KM_ONES) * KM_ONES) >> 56) - 1;
			m->skip = 0;
			return true;
		}
		pos += 8;
	}
	m->position = pos;
	return false;
}

/*
 * What comes behind the name and the value of a field that nobody asks about, taken
 * without the table. What is not there yet, and what is not so, is left to that.
 */
static __always_inline bool skip_on(struct run *r)
{
	struct machine *m = r->m;
	__u32 pos = m->position;
	const __u8 *bytes = r->bytes + ((pos - r->first) & (KM_MAX_HEAD - 1));

	if (m->line == r->other && pos + 1 <= r->end && bytes[0] == ':') {
		m->position = pos + 1;
		m->line = r->skip;
		m->skip = 1;
		return true;
	}
	if (m->line == r->skip && pos + 2 <= r->end && m->fields < KM_MAX_FIELDS - 1 &&
	    *(const __u16 *)bytes == 0x0a0d) {
		m->position = pos + 2;
		m->line = r->line;
		m->fields++;
		return true;
	}
	return false;
}

#endif
