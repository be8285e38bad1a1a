/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * framing.h: where a message's body ends (RFC 9112, sections 6.3 and 7.1). Only the
 * lines of chunks and trailers are read; the rest is counted. A frame's pos is the
 * next byte that has to be read, so packets that end before it need not be looked at
 * and may come in any order.
 */
#ifndef KM_FRAMING_H
#define KM_FRAMING_H

#include "packet.h"

/* Sequence numbers wrap: a position is never farther away than this. */
#define KM_STRIDE (1U << 30)

#define KM_CHUNK_DIGITS 16
#define KM_CHUNK_EXTENSION 64
#define KM_TRAILER_BYTES 8192

/* Within a chunk's line. */
enum {
	CHUNK_SIZE,
	CHUNK_MORE_SIZE,
	CHUNK_EXTENSION,
	CHUNK_LF,
	CHUNK_DATA_CR,
	CHUNK_DATA_LF,
};

/* Within a trailer. */
enum {
	TRAILER_LINE,
	TRAILER_LAST_LF,
	TRAILER_TEXT,
	TRAILER_LF,
};

struct frame_walk {
	struct __sk_buff *skb;
	struct frame *frame;
	__u32 begin; /* C: of the payload */
	__u32 end;
	__u32 at; /* offset of the payload in the packet */
	__u32 bad;
};

static __always_inline void advance(struct frame *f)
{
	__u32 step = f->left < KM_STRIDE ? f->left : KM_STRIDE;

	f->pos += step;
	f->left -= step;
}

static __always_inline bool chunk_byte(struct frame *f, __u8 c)
{
	__u8 digit = c - '0';

	if (digit > 9) {
		digit = (c | 0x20) - 'a';
		digit = digit < 6 ? digit + 10 : 0xff;
	}
	switch (f->line) {
	case CHUNK_SIZE:
		f->left = 0;
		f->len = 0;
		if (digit == 0xff)
			return false;
		f->line = CHUNK_MORE_SIZE;
		f->left = digit;
		f->len = 1;
		return true;
	case CHUNK_MORE_SIZE:
		if (digit != 0xff) {
			f->left = f->left << 4 | digit;
			return ++f->len <= KM_CHUNK_DIGITS && f->left < 1ULL << 63;
		}
		f->len = c == ';'; /* it is a byte of the extension */
		f->line = c == '\r' ? CHUNK_LF : CHUNK_EXTENSION;
		return c == '\r' || c == ';';
	case CHUNK_EXTENSION:
		if (c == '\r') {
			f->line = CHUNK_LF;
			return true;
		}
		return (c >= 0x20 || c == '\t') && c != 0x7f && ++f->len <= KM_CHUNK_EXTENSION;
	case CHUNK_DATA_CR:
		f->line = CHUNK_DATA_LF;
		return c == '\r';
	case CHUNK_DATA_LF:
		f->line = CHUNK_SIZE;
		return c == '\n';
	default: /* CHUNK_LF */
		if (c != '\n')
			return false;
		f->line = 0;
		f->len = 0;
		if (!f->left) {
			f->kind = KM_FRAME_TRAILER;
			return true;
		}
		f->kind = KM_FRAME_DATA;
		return true;
	}
}

static __always_inline bool trailer_byte(struct frame *f, __u8 c)
{
	if (++f->len > KM_TRAILER_BYTES)
		return false;
	switch (f->line) {
	case TRAILER_LINE:
		f->line = c == '\r' ? TRAILER_LAST_LF : TRAILER_TEXT;
		return c != '\n';
	case TRAILER_LAST_LF:
		if (c != '\n')
			return false;
		f->kind = KM_FRAME_HEAD;
		return true;
	case TRAILER_TEXT:
		if (c == '\r')
			f->line = TRAILER_LF;
		return c != '\n';
	default:
		f->line = TRAILER_LINE;
		return c == '\n';
	}
}

/*
 * A body of known length, of which no byte has to be read: past it if it ends in a
 * packet that ends at end, without a loop. true: there is nothing else to follow.
 */
static __always_inline bool follow_length(struct frame *f, __u32 end)
{
	if (f->kind != KM_FRAME_LENGTH)
		return f->kind == KM_FRAME_HEAD;
	if (f->left >= KM_STRIDE)
		return false;
	f->pos += f->left;
	f->left = 0;
	if (!before(end, f->pos))
		f->kind = KM_FRAME_HEAD;
	return true;
}

static long frame_step(__u32 i, struct frame_walk *w)
{
	struct frame *f = w->frame;
	__u8 c = 0;

	switch (f->kind) {
	case KM_FRAME_LENGTH:
	case KM_FRAME_DATA:
		if (before(w->end, f->pos))
			return 1;
		if (f->left) {
			advance(f);
			return 0;
		}
		if (f->kind == KM_FRAME_LENGTH) {
			f->kind = KM_FRAME_HEAD;
			return 1;
		}
		f->kind = KM_FRAME_CHUNK;
		f->line = CHUNK_DATA_CR;
		return 0;
	case KM_FRAME_CHUNK:
	case KM_FRAME_TRAILER:
		if (!before(f->pos, w->end))
			return 1;
		if (bpf_skb_load_bytes(w->skb, w->at + (f->pos - w->begin), &c, 1)) {
			w->bad = 1;
			return 1;
		}
		f->pos++;
		w->bad = f->kind == KM_FRAME_CHUNK ? !chunk_byte(f, c) : !trailer_byte(f, c);
		return w->bad || f->kind == KM_FRAME_HEAD;
	default:
		return 1;
	}
}

/* Steps of one packet: its bytes, and what ends an extent, at most. */
#define KM_FRAME_STEPS (1 << 18)

/*
 * Follows a body through a packet whose payload is [begin, end) in C space. 1: the
 * body is malformed; the frame then means nothing any more.
 */
__noinline int follow_body(struct __sk_buff *skb, const struct packet *p, struct frame *frame,
			   __u32 begin, __u32 end)
{
	struct frame_walk w = {
		.skb = skb,
		.frame = frame,
		.begin = begin,
		.end = end,
	};

	if (!p || !frame)
		return 1;
	w.at = p->l4 + p->tcp_len;
	bpf_loop(KM_FRAME_STEPS, frame_step, &w, 0);
	return w.bad;
}

#endif
