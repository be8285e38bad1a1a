//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * No programs: the maps alone, from which the loader creates them and bpf2go
 * generates Go's types.
 */
#include "maps.h"

/* Types that no map mentions: a pointer keeps them in the BTF. */
struct socket_record *keep_socket_record __attribute__((unused));
enum phase *keep_phase __attribute__((unused));
enum kind *keep_kind __attribute__((unused));
enum policy *keep_policy __attribute__((unused));
enum reason *keep_reason __attribute__((unused));
enum name_kind *keep_name_kind __attribute__((unused));

char _license[] SEC("license") = "Dual BSD/GPL";
