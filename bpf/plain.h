/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * plain.h: the heads of nearly all responses, read eight bytes at a time and without
 * the table. It knows less than the table and never says anything else: what is not
 * whole, and what is not as plain as this, is left to the table. Nothing but the bytes
 * is read, so that head.bpf.c can hold it against the reference.
 */
#ifndef KM_PLAIN_H
#define KM_PLAIN_H

#include "table.h"

/* Longer heads are left to the table: what is copied for a try is bounded by it. */
#define KM_PLAIN_BYTES 1024

/* Steps of one round, and rounds: some 50 fields. */
#define KM_PLAIN_STEPS 24
#define KM_PLAIN_ROUNDS 12

/* Digits of a Content-Length that is read here. */
#define KM_PLAIN_DIGITS 12

/* The reading of a plain response's head. */
struct plain {
	/* Where the values are that say something of its body; 0: none. */
	__u32 length; /* Content-Length */
	__u32 coding; /* Transfer-Encoding */
	__u32 connection;
	__u32 pos;
	__u32 start; /* of the line */
	__u32 end;
	__u8 value; /* in a value, not in a name */
	__u8 state;
	/* What it says, when read_plain returns a length. */
	__u16 status;
	__u8 has_length;
	__u8 chunked;
	__u8 close; /* no other message follows */
	__u8 pad;
	__u64 body; /* its Content-Length */
};

static __always_inline __u64 plain_word(const __u8 *bytes, __u32 at)
{
	return *(const __u64 *)(bytes + (at & (KM_MAX_HEAD - 1)));
}

/* The number of the lowest byte of v that has its top bit; v is not 0. */
static __always_inline __u32 first_top(__u64 v)
{
	v = (v ^ (v - 1)) >> 7;
	return (((v & KM_ONES) * KM_ONES) >> 56) - 1;
}

/* Notes a field that says something of the body. false: this is not plain. */
static __always_inline bool note_field(struct plain *f, const __u8 *bytes, __u32 start, __u32 n)
{
	const __u64 lower = 0x2020202020202020ULL; /* letters' case, and "-" and digits have it */
	__u64 a = plain_word(bytes, start) | lower, b = plain_word(bytes, start + n - 8) | lower;
	__u32 *at;

	if (n == 14 && a == 0x2d746e65746e6f63ULL && b == 0x6874676e656c2d74ULL)
		at = &f->length;
	else if (n == 17 && a == 0x726566736e617274ULL && b == 0x676e69646f636e65ULL &&
		 bytes[(start + 8) & (KM_MAX_HEAD - 1)] == '-')
		at = &f->coding;
	else if (n == 10 && a == 0x697463656e6e6f63ULL && b == 0x6e6f697463656e6eULL)
		at = &f->connection;
	else
		return true;
	if (*at || bytes[(start + n + 1) & (KM_MAX_HEAD - 1)] != ' ')
		return false;
	*at = start + n + 2;
	return true;
}

/* What the fields say. false: this is not plain. */
static __always_inline bool plain_body(struct plain *f, const __u8 *bytes)
{
	if (f->coding) {
		if (f->length || plain_word(bytes, f->coding) != 0x0d64656b6e756863ULL)
			return false; /* "chunked\r" */
		f->chunked = 1;
	}
	if (f->connection) {
		__u64 v = plain_word(bytes, f->connection);
		__u64 rest = plain_word(bytes, f->connection + 8);

		if (((v & 0xffffffffffffULL) | 0x2020202020) == 0x0d65736f6c63ULL) /* "close\r" */
			f->close = 1;
		else if ((v | 0x2020202020202020ULL) != 0x696c612d7065656bULL ||
			 ((rest & 0xffffff) | 0x2020) != 0x0d6576) /* "keep-ali", "ve\r" */
			return false;
	}
	if (f->length) {
		__u64 n = 0;
		__u32 i;

		for (i = 0; i < KM_PLAIN_DIGITS; i++) {
			__u8 digit = bytes[(f->length + i) & (KM_MAX_HEAD - 1)] - '0';

			if (digit > 9)
				break;
			n = n * 10 + digit;
		}
		if (!i || bytes[(f->length + i) & (KM_MAX_HEAD - 1)] != '\r')
			return false;
		f->has_length = 1;
		f->body = n;
	}
	return true;
}

enum {
	PLAIN_MORE,
	PLAIN_DONE,
	PLAIN_NOT,
};

/* The next steps, each to the end of a word, a name or a value. */
static __always_inline __u8 plain_steps(struct plain *f, const __u8 *b)
{
	__u32 pos = f->pos, start = f->start, end = f->end;
	bool value = f->value;

	for (int i = 0; i < KM_PLAIN_STEPS; i++) {
		__u64 v = plain_word(b, pos), stops = value ? value_stops(v) : run_stops(v);
		__u16 pair;

		if (!stops) {
			pos += 8;
			continue;
		}
		pos += first_top(stops);
		if (pos + 2 > end)
			return PLAIN_NOT;
		pair = *(const __u16 *)(b + (pos & (KM_MAX_HEAD - 1)));
		if (pair == 0x0a0d) {
			pos += 2;
			if (!value) {
				f->pos = pos;
				return pos - 2 == start ? PLAIN_DONE : PLAIN_NOT;
			}
			start = pos;
			value = false;
			continue;
		}
		if (value || (__u8)pair != ':' || pos == start ||
		    (pos - start >= 10 && !note_field(f, b, start, pos - start)))
			return PLAIN_NOT;
		pos++;
		value = true;
	}
	f->pos = pos;
	f->start = start;
	f->value = value;
	return PLAIN_MORE;
}

struct plain_try {
	struct plain *f;
	const __u8 *bytes;
};

static long plain_round(__u32 i, struct plain_try *t)
{
	t->f->state = plain_steps(t->f, t->bytes);
	if (t->f->state == PLAIN_MORE)
		return 0;
	return 1;
}

/*
 * Reads the head at the beginning of bytes, of which end are there, and there is room
 * to read on. Its length; 0: it is for the table. A final response of HTTP/1.1, names
 * of letters, digits, "-" and ".", values of printable ASCII.
 */
static __always_inline __u32 read_plain(struct plain *f, const __u8 *b, __u32 end)
{
	struct plain_try t = {.f = f, .bytes = b};

	/* "HTTP/1.1 200 " */
	if (end < 19 || end > KM_PLAIN_BYTES || plain_word(b, 0) != 0x312e312f50545448ULL ||
	    b[8] != ' ' || b[12] != ' ')
		return 0;
	if (b[9] < '2' || b[9] > '5' || (__u8)(b[10] - '0') > 9 || (__u8)(b[11] - '0') > 9)
		return 0;
	__builtin_memset(f, 0, sizeof(*f));
	f->pos = 13;
	f->value = 1; /* the reason phrase */
	f->end = end;
	bpf_loop(KM_PLAIN_ROUNDS, plain_round, &t, 0);
	if (f->state != PLAIN_DONE || !plain_body(f, b))
		return 0;
	f->status = (b[9] - '0') * 100 + (b[10] - '0') * 10 + (b[11] - '0');
	return f->pos;
}

#endif
