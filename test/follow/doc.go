// SPDX-License-Identifier: Apache-2.0

// Package follow tests that pods are followed while they run: late enrolment, opting out
// with drain, repair of drift. The pods, the plugin, the programs and the traffic are
// real; the API server is client-go's fake, which keeps objects and tells of changes, and
// test/e2e has the real one.
//
// Invariant: whether a pod is governed is asked of the pod, whose connections reach a
// service's server or do not, and of the kernel; never of the code that is tested.
package follow
