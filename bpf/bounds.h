/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* bounds.h: what every verifier is to know of a number, and what none is. */
#ifndef KM_BOUNDS_H
#define KM_BOUNDS_H

#include <linux/types.h>

#include <stdbool.h>

#include <bpf/bpf_helpers.h>

/*
 * Whether n is from least to most. Written as two comparisons it becomes one, of
 * n - least, from which no verifier learns what n is; and before Linux 6.8 none learns
 * from n != 0 that n is at least 1. So n is made anew out of what was compared.
 */
static __always_inline bool is_between(__u32 *n, __u32 least, __u32 most)
{
	__u32 above = *n - least;

	asm volatile("" : "+r"(above));
	if (above > most - least)
		return false;
	*n = above + least;
	return true;
}

/*
 * v, of which the verifier knows nothing. What a callback of bpf_loop keeps on the
 * stack, changes in one round and reads in the next begins so: before Linux 6.7 the
 * verifier walks one round only, and removes what that cannot come to.
 */
static __always_inline __u32 unknown(__u32 v)
{
	__u64 swapped = v;

	asm volatile("%0 = be64 %0\n\t%0 = be64 %0" : "+r"(swapped));
	return swapped;
}

#endif
