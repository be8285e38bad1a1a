// SPDX-License-Identifier: Apache-2.0

// Package live holds the L7 path against the reference matcher (helper/head, helper/explain) on live traffic: the
// generated configurations of test/match are published, their generated requests go over real connections from
// enrolled pods to real servers, and what a client sees has to be one of the things that the reference allows.
//
// Invariant: a pair of configuration and request counts only if something was seen of it: which server got which
// bytes, or what was answered on the way, or that the connection ended. Each cluster has servers of its own, and a
// server answers with the sum of what it received.
//
// A run prints its seed. KMESH_SEED and KMESH_PAIRS repeat it; KMESH_L7=full makes the whole number of pairs.
package live
