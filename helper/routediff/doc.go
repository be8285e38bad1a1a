// SPDX-License-Identifier: Apache-2.0

// Package routediff compares two configurations of HTTP routing by what they do to
// requests: which requests are decided otherwise, with one request that shows it, and
// which routes no request ever reaches.
//
// A route is a conjunction of conditions, each on one string of a request: its host,
// method, path, a query parameter, a header. Such a string is a dimension. All the
// patterns of both configurations divide the strings of a dimension into finitely
// many classes that no route tells apart (package automaton), so a request is, for
// both configurations, one class of each dimension. The search takes the dimensions
// in turn; what a choice leaves of the routes decides all the rest, so equal remains
// are searched once, and remains that are the same in both configurations not at all.
//
// The invariant: the answer is exact or an error. Two sequences of routes (old and
// new) decide some request, and decide it differently, if and only if there is a
// Change of them; a route is reported to be never reached if and only if no request
// that package head routes reaches it. Every request that is reported was parsed by
// package head and matched by package explain, with the result that is claimed. What
// costs more than Limits is refused with a LimitError that says where.
//
// What an endpoint of a cluster is, and whether a cluster has any, is not compared.
package routediff
