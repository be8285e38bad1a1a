// SPDX-License-Identifier: Apache-2.0

// Package e2e holds tests only: Kmesh on a real Kubernetes node (package kubenode), from the API server to the kernel.
// Run them with make e2e, which builds what they need; they are no part of make test. A test that fails shows the end of
// every component's log and says where all of them are kept.
//
// Invariant: nothing is told that was not seen. What a test says of a pod it has from the API server (phase, events) and
// from the kernel (programs on the pod's cgroup and interface), never from Kmesh alone. A missing part is a failure,
// never a skip.
package e2e
