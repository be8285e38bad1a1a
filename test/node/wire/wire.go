// SPDX-License-Identifier: Apache-2.0

// Package wire is what a test and the agent inside a pod say to each other: one JSON object a line, requests on the
// agent's stdin, answers on its stdout, matched by ID and in any order.
//
// Invariant: an answer tells what the pod's own process saw through its own system calls. Nothing in it is worked out
// by the test's side, which lives in another cgroup and so is not governed.
package wire

import "time"

// Networks that Dial and DialN know. The suffix says which socket family makes the call; "tcp" and "udp" take it from
// the address. The mapped ones reach an IPv4 address through an AF_INET6 socket, as ::ffff:a.b.c.d, as most
// dual-stack programs do.
const (
	TCP       = "tcp"
	UDP       = "udp"
	MPTCP     = "mptcp"
	TCPMapped = "tcp-mapped"
	UDPMapped = "udp-mapped"
)

// Request is one line to the agent: an ID and exactly one of the other fields.
type Request struct {
	ID       uint64    `json:"id"`
	Listen   *Listen   `json:"listen,omitempty"`
	Dial     *Dial     `json:"dial,omitempty"`
	DialN    *DialN    `json:"dialN,omitempty"`
	Churn    *Churn    `json:"churn,omitempty"`
	Exchange *Exchange `json:"exchange,omitempty"`
	Connect  *Connect  `json:"connect,omitempty"`
	Close    *Close    `json:"close,omitempty"`
}

// Answer is one line from the agent. Error is for requests the agent could not carry out at all; what a system call
// answered to a good request is in the result (Errno).
type Answer struct {
	ID      uint64   `json:"id"`
	Error   string   `json:"error,omitempty"`
	Result  *Result  `json:"result,omitempty"`
	Counts  *Counts  `json:"counts,omitempty"`
	Churned *Churned `json:"churned,omitempty"`
}

// Listen starts a server that tells its name: TCP greets with "NAME CLIENT-ADDRESS\n" and then answers each line with
// "NAME LINE\n"; UDP answers each packet with "NAME CLIENT-ADDRESS\n", from the socket that got it.
type Listen struct {
	Network string `json:"network"` // TCP, UDP or MPTCP
	Addr    string `json:"addr"`    // host:port; port 0 lets the kernel choose, the result's Local tells
	Name    string `json:"name"`
}

// Dial opens a socket, makes one exchange with a naming server, and closes the socket unless Keep.
type Dial struct {
	Network string        `json:"network"`
	Addr    string        `json:"addr"`              // ip:port
	Bind    string        `json:"bind,omitempty"`    // ip:port of our end
	Keep    bool          `json:"keep,omitempty"`    // leave it open: the result's Handle is for Exchange and Close
	Timeout time.Duration `json:"timeout,omitempty"` // of each step; 0 is 3 s
	// Unconnected (UDP only): no connect(2), but sendto(2) and recvfrom(2). Peer is then where the answer came from.
	Unconnected bool `json:"unconnected,omitempty"`
	// FastOpen (TCP only): the line "hello" goes with the SYN (MSG_FASTOPEN).
	FastOpen bool `json:"fastOpen,omitempty"`
	// Silent: connect only, wait for no server's word (for servers that are not ours, and for asking "may I?").
	Silent bool `json:"silent,omitempty"`
	// HandOver (TCP only, with Silent): the connected socket goes to the test's process, under the result's Handle, and
	// the agent forgets it. It stays a socket of the pod: of its cgroup and its network namespace. See Handed.
	HandOver bool `json:"handOver,omitempty"`
}

// Handed is the agent's descriptor of the socket over which it hands over others: a SOCK_SEQPACKET, one packet for each,
// of the handle (8 bytes, big-endian) and the descriptor (SCM_RIGHTS). It is sent before the answer.
const Handed = 3

// DialN makes N dials and counts.
type DialN struct {
	Dial
	N        int           `json:"n"`                  // at least 1
	Parallel int           `json:"parallel,omitempty"` // 0 is 1
	Pause    time.Duration `json:"pause,omitempty"`    // after each dial of each of the parallel ones
}

// Churn makes N connections of one HTTP request each, one after the other on each of Parallel threads, as fast as they
// go. The response's body has to be the request's path, which is another one each time.
type Churn struct {
	Addr     string        `json:"addr"` // ip:port
	N        int           `json:"n"`
	Parallel int           `json:"parallel,omitempty"` // 0 is 1
	Timeout  time.Duration `json:"timeout,omitempty"`  // of each step; 0 is 3 s
	// ServerFirst: the request asks for the connection's end, and the client waits for it before it closes too. Else
	// the client closes as soon as it has the response.
	ServerFirst bool `json:"serverFirst,omitempty"`
}

// Churned is what came of a Churn.
type Churned struct {
	Done   int            `json:"done"`   // answered rightly
	Errors map[string]int `json:"errors"` // by "call ERRNO", or what was wrong with the answer
	Took   time.Duration  `json:"took"`
	P50    time.Duration  `json:"p50"` // of a connection, from socket(2) to its end
	P99    time.Duration  `json:"p99"`
	Max    time.Duration  `json:"max"`
}

// Exchange makes another exchange over a kept socket.
type Exchange struct {
	Handle  uint64        `json:"handle"`
	To      string        `json:"to,omitempty"` // unconnected UDP: another address than the one dialled
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Connect connects a kept UDP socket to another address, or disconnects it (To empty: AF_UNSPEC). The result's Peer is
// what getpeername says then; empty: not connected.
type Connect struct {
	Handle uint64 `json:"handle"`
	To     string `json:"to,omitempty"`
}

// Close closes a kept socket or a listener.
type Close struct {
	Handle uint64 `json:"handle"`
}

// Result is what one socket saw.
type Result struct {
	Server string `json:"server,omitempty"` // the name that answered
	Seen   string `json:"seen,omitempty"`   // our address as the server saw it
	Peer   string `json:"peer,omitempty"`   // getpeername(2), or the source that recvfrom(2) told
	Local  string `json:"local,omitempty"`  // getsockname(2)
	Call   string `json:"call,omitempty"`   // the system call that failed
	Errno  string `json:"errno,omitempty"`  // ECONNREFUSED, EAGAIN (timed out), EOF, ...; empty when all went well
	Handle uint64 `json:"handle,omitempty"`
}

// Counts is what many sockets saw.
type Counts struct {
	Done    int            `json:"done"`
	Servers map[string]int `json:"servers"` // by name that answered
	Peers   map[string]int `json:"peers"`   // by getpeername, or source
	Errnos  map[string]int `json:"errnos"`  // by "call ERRNO"
}
