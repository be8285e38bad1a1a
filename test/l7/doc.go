// SPDX-License-Identifier: Apache-2.0

// Package l7 tests the L7 path on live traffic: pods enrolled by the real plugin, HTTP servers in pods that are not,
// and services published from a model of the mesh.
//
// Every scenario takes the address to connect to. TestDirect runs those that mean the same without Kmesh straight
// against a server, which shows that they are right; TestMatrix runs them all through Kmesh.
//
// The full volumes take minutes: KMESH_L7=full go test ./test/l7. A run prints its seed; KMESH_L7_SEED repeats it.
package l7
