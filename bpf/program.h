/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * program.h: the layout of a compiled virtual host, as helper/automaton writes it, and
 * of what a machine remembers while it runs one. A change here is one there.
 */
#ifndef KM_PROGRAM_H
#define KM_PROGRAM_H

#include <linux/bpf.h>

#include <stdbool.h>

#include <bpf/bpf_helpers.h>

/* One slab: what fits into one value of an array map on every kernel. */
#define KM_SLAB (1 << 22)

#define KM_MAX_HEAD 8192
#define KM_MAX_FIELDS 100
#define KM_MAX_DIMENSIONS 64
#define KM_ROUTE_WORDS 64
#define KM_HIT_WORDS 16
#define KM_SPANS 6
#define KM_MAX_CONDS 16 /* flags that one route asks about */

/* What a machine reads from: the bytes, and room to read on behind the last one. */
#define KM_HEAD_BUFFER (KM_MAX_HEAD + 64)

enum head_kind {
	KM_HEAD_INCOMPLETE = 0,
	KM_HEAD_ROUTE = 1,
	KM_HEAD_REJECT = 2,
	KM_HEAD_PIN = 3,
};

/* The rules that the machine itself fires, by their number in automaton.Rules. */
enum head_rule {
	KM_RULE_OPAQUE_LAST = 4, /* the rules up to here pin */
	KM_RULE_CONNECT = 4,
	KM_RULE_VERSION_UNSUPPORTED = 13,
	KM_RULE_TOO_MANY_FIELDS = 20,
	KM_RULE_HEAD_TOO_LONG = 21,
	KM_RULE_HOST_MISSING = 22,
	KM_RULE_HOST_DIFFERS = 25,
	KM_RULE_TE_WITH_LENGTH = 28,
	KM_RULE_TE_IN_1_0 = 31,
	KM_RULE_STATUS_LINE = 32, /* the rules from here on pin */
	KM_RULE_SWITCHING = 33,
};

#define KM_SPAN_METHOD 0
#define KM_SPAN_PATH 1
#define KM_SPAN_QUERY 2
#define KM_SPAN_AUTHORITY 3
#define KM_SPAN_HOST 4

/* What a machine remembers: automaton.State, and the result. */
struct machine {
	__u32 position;
	__u16 line;
	__u16 base;
	__u32 start;
	__u8 class;
	__u8 dim;
	__u8 skip;
	__u8 need;
	__u8 lo;
	__u8 hi;
	__u8 rule;
	__u8 kind;
	__u32 last;
	__u16 fields;
	__u16 flags;
	__u16 status;
	__u16 pad;
	__u64 length;
	__u64 bad;
	__u16 spans[KM_SPANS][2];
	__u16 saved[KM_MAX_DIMENSIONS];
	__u64 hits[KM_HIT_WORDS];
};

/*
 * A walk over bits or records. It is in a map and not on the stack, where the verifier
 * would follow it step by step.
 */
struct walk {
	__u64 rest; /* bits that are left */
	__u32 word;
	__u32 bit;
	__u32 at; /* in the slab: the next record */
	__u32 n;  /* records that are left */
};

/* The routes that match, in order, when the head is whole. */
struct candidates {
	__u64 words[KM_ROUTE_WORDS]; /* of which only those in summary are valid */
	__u64 summary;
	struct walk outer, inner, pairs;
};

/* The header of a program. */
struct program {
	__u32 magic;
	__u32 size;
	__u32 groups;
	__u32 actions;
	__u32 finals;
	__u32 dims;
	__u32 records;
	__u32 dense;
	__u32 pairs;
	__u32 emits;
	__u32 emit_words;
	__u32 path_hits;
	__u32 route_conds;
	__u32 conds;
	__u16 words;
	__u8 n_asked; /* dimensions that routes ask about come first */
	__u8 n_told;  /* then those that say something else */
	__u16 start;
	__u8 start_class;
	__u8 path;
	__u8 host;
	__u8 length;
	__u8 coding;
	__u8 upgrade;
	__u8 n_hit_words;
	__u8 method;
	__u8 has_conds;
	__u8 response;
	__u16 skip;     /* in a value that nobody asks about */
	__u16 other;    /* in the name of such a field */
	__u16 line;     /* at the beginning of a line */
	__u16 path_end; /* the action of the blank behind a path */
};

#define KM_PROGRAM_MAGIC 0x314d414b
#define KM_NO_DIM 0xff
#define KM_ACT 0x8000 /* of a table entry */

/* States that tell the same bytes apart: a row of the table each. */
struct group {
	__u8 column[256]; /* of a byte, in a row */
	__u32 rows;       /* from here to where state 0 would have its row, modulo 2^32 */
	__u32 stride;     /* bytes of a row */
};

struct action {
	__u32 ops;
	__u16 next;
	__u16 alt;
	__u16 emit;
	__u16 flags;
	__u8 dim;
	__u8 arg;
	__u8 class;
	__u8 alt_class;
	__u64 text;
	__u8 bytes; /* of text */
	__u8 pad[7];
};

struct dimension {
	__u16 start;
	__u16 missing;
	__u8 class;
	__u8 join;
	__u8 hit_first;
	__u8 hit_end;
	__u8 pad[8];
};

struct record {
	__u32 at;
	__u16 bad;
	__u8 count;
	__u8 flags;
	__u64 bits;
};

struct pair {
	__u64 bits;
	__u32 word;
	__u32 pad;
};

struct list {
	__u32 first;
	__u32 n;
};

#define OP_SAVE (1 << 0)
#define OP_SPAN (1 << 1)
#define OP_DIM (1 << 2)
#define OP_START (1 << 3)
#define OP_AFTER (1 << 4)
#define OP_HIGH (1 << 5)
#define OP_EMIT (1 << 6)
#define OP_DIGIT (1 << 7)
#define OP_STATUS (1 << 8)
#define OP_EMPTY (1 << 9)
#define OP_ONCE (1 << 10)
#define OP_FIRST (1 << 11)
#define OP_ENTER (1 << 12)
#define OP_BASE (1 << 13)
#define OP_REDO (1 << 14)
#define OP_FIELD (1 << 15)
#define OP_SKIP (1 << 16)
#define OP_HOP (1 << 17)
#define OP_RUN (1 << 18)
#define OP_AHEAD (1 << 19)
#define OP_VERSION (1 << 20)
#define OP_STOP (1 << 21)
#define OP_END (1 << 22)

#define KM_FLAG_MINOR1 (1 << 0)
#define KM_FLAG_ABSOLUTE (1 << 1)
#define KM_FLAG_HEAD (1 << 2)       /* the method is HEAD */
#define KM_FLAG_CLOSE (1 << 3)      /* Connection: close */
#define KM_FLAG_KEEP_ALIVE (1 << 4) /* Connection: keep-alive */

/* One run of a machine over a piece of a head. */
struct run {
	struct machine *m;
	struct candidates *found;
	const __u8 *slab;
	const __u8 *bytes; /* KM_HEAD_BUFFER of them, at most KM_MAX_HEAD used */
	__u32 first;       /* the position of bytes[0] */
	__u32 end;         /* the position behind the last byte */
	__u32 base;        /* of the program in the slab */
	__u32 groups;
	__u32 actions;
	__u16 skip;
	__u16 other;
	__u16 line;
};

#endif
