// SPDX-License-Identifier: Apache-2.0

// Package automaton compiles the routes of a virtual host, together with the
// grammar of an HTTP/1 head, into one byte table, and runs it.
//
// A head is a sequence of strings: method, path, query parameters, header values.
// Each string that a route asks about is a dimension with its own small automaton;
// all of them lie in one table, and the grammar's states lead from one to the next.
// So a byte costs one look-up however many routes there are. At the end of a head
// the state in which each dimension stopped names the set of routes whose
// conditions on it hold; the sets are ANDed, and the first route left is the first
// in order that matches. A header may come in any order and more than once: its
// automaton goes on from the state where it stopped, over a ",".
//
// Patterns that would multiply states (infixes) set flags instead: see Hit.
//
// Expressions are RE2's, on whole strings: bytes that are not valid UTF-8 are no
// character to it, so a string that has such bytes matches no expression, not even
// ".*" (as in Envoy). Go's regexp would take each of them for U+FFFD. Plain strings are
// compared as bytes.
//
// The invariant: a Program is a pure function of its virtual host, byte for byte,
// and Machine, which runs a Program's bytes, is the exact mirror of the machine in
// bpf/table.h, which runs the same bytes in the kernel. What a machine decides does
// not depend on how the head was cut.
package automaton
