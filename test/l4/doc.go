// SPDX-License-Identifier: Apache-2.0

// Package l4 tests the kernel half on live traffic: pods enrolled by the real
// plugin, real sockets of processes in the pods' cgroups, maps written by the real
// publisher. What a test claims is what the pod's own process saw.
package l4
