// SPDX-License-Identifier: Apache-2.0

// Package clients runs the programs that people use through Kmesh: curl, ab, wrk, and the HTTP libraries of Go, Node,
// Python and Java as clients; nginx, HAProxy, Go and Node as servers; WebSocket, gRPC, TLS, redis and SMTP on ports that
// are declared to be HTTP.
//
// Invariant: nothing is believed because no program complained. Every body is compared with what it should be, every
// server says its name and answers nothing but paths of its own, and for each client the kernel's counters must tell
// the same story: so many connections, so many requests for each cluster, so many switches of the endpoint, and no pin
// but those that are expected.
//
// The full volumes take minutes: KMESH_L7=full go test ./test/clients.
package clients
