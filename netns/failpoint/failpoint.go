// SPDX-License-Identifier: Apache-2.0

// Package failpoint marks the steps at which a test stops the plugin, or makes one of its system calls fail. A point stands before each change that the
// plugin makes to the kernel or to the disk, and so behind the one before.
//
// Invariant: what is shipped has no points. Without the build tag "failpoint" Here is empty, and nothing of it, not even the points' names, is left in a
// binary; package test/fault proves that by looking for them. With the tag, the environment variable KMESH_FAILPOINT says what happens:
//
//	trace=FILE     add the name of every point that is passed to FILE, one a line
//	kill@POINT     SIGKILL to the process itself
//	ERRNO@POINT    fail with that error, such as EIO
//	unsupported@POINT  fail as a kernel that lacks the feature does
//
// POINT is a name, and then each point of that name is meant, or a number: the n-th point that is passed, from 1. Several are separated by commas.
package failpoint

// Variable is the environment variable.
const Variable = "KMESH_FAILPOINT"
