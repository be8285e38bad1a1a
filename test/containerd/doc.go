// SPDX-License-Identifier: Apache-2.0

// Package containerd holds tests only: our plugin under real container runtimes (containerd 2 built from its module,
// and Debian's 1.6), each in namespaces of its own on a node of package node, driven over CRI as the kubelet does.
//
// Invariant: nothing stands in for the runtime. What the plugin gets is what containerd gives it, and what the tests
// look at is what the kernel has on the pod's cgroup. A missing part is a failure, never a skip.
package containerd
