// SPDX-License-Identifier: Apache-2.0

// Package istiod holds tests only: a Kmesh node that gets its mesh from a real istiod (package control), from the objects
// at the API server to requests between pods. Run them with make istiod, which builds what they need; they are no part of
// make test.
//
// Invariant: what is expected follows from Istio's own objects, never from what Kmesh made of them, and whether it holds
// is asked of the pods, whose requests reach a server or do not. A missing part is a failure, never a skip.
package istiod
