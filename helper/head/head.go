// SPDX-License-Identifier: Apache-2.0

package head

import "fmt"

// The limits of a request's head. One that is larger is answered 431.
const (
	MaxHead   = 8192 // bytes, with the empty line at its end
	MaxFields = 100
)

// Kind is what an Outcome says.
type Kind uint8

// The kinds of outcome.
const (
	Incomplete Kind = iota // the bytes so far decide nothing: more are needed
	Route                  // a whole head: it is matched
	Reject                 // answered with Status, and the connection ends
	Pin                    // the connection's bytes are not looked at any more: it stays where it is
)

func (k Kind) String() string {
	return [...]string{"incomplete", "route", "reject", "pin"}[k]
}

// Reason says why a connection is pinned.
type Reason uint8

// The reasons.
const (
	NoReason  Reason = iota
	H2               // the HTTP/2 preface
	TLS              // a TLS record
	Opaque           // nothing that looks like HTTP/1
	Connect          // CONNECT: a tunnel
	Upgraded         // 101: another protocol follows
	Malformed        // a response that cannot be framed
)

func (r Reason) String() string {
	return [...]string{"", "h2", "tls", "opaque", "connect", "upgrade", "malformed"}[r]
}

// Outcome is the decision about a head.
type Outcome struct {
	Kind Kind
	// At is the number of bytes read when it was decided: the deciding byte is the
	// At-th. 0 when Incomplete.
	At int
	// Rule is the ID of the rule that fired; "" when Incomplete, or when a head is
	// routed and no rule has to say anything about it.
	Rule   string
	Status int    // of a Reject
	Reason Reason // of a Pin
}

func (o Outcome) String() string {
	switch o.Kind {
	case Reject:
		return fmt.Sprintf("reject %d %s at byte %d", o.Status, o.Rule, o.At)
	case Pin:
		return fmt.Sprintf("pin %s (%s) at byte %d", o.Reason, o.Rule, o.At)
	case Route:
		return fmt.Sprintf("route at byte %d", o.At)
	default:
		return "incomplete"
	}
}

// Field is one line of a head: its name as sent, its value without the blanks around it.
type Field struct{ Name, Value string }

// Request is the head of a request that is routed.
type Request struct {
	Method string // as sent
	Target string // as sent
	// Path is the target up to "?", as sent, without scheme and authority; "/" if that
	// leaves nothing. "*" for OPTIONS *.
	Path     string
	Query    string // what follows the first "?", as sent
	HasQuery bool
	Proto    string // "HTTP/1.0" or "HTTP/1.1"
	Absolute bool   // the target has scheme and authority
	// Authority is the value of Host as sent; a target in absolute form has the same.
	// "" when there is none (HTTP/1.0).
	Authority string
	Host      string // Authority in lower case, without its port; with brackets if it has any
	Port      string // its digits, or ""
	Fields    []Field
	// ContentLength is -1 when there is none. With neither it nor Chunked there is no body.
	ContentLength int64
	Chunked       bool
	Upgrade       bool // there is an Upgrade field
	Expect100     bool // Expect: 100-continue
	// KeepAlive: the client will send another request. HTTP/1.1 without the option
	// "close" in Connection; HTTP/1.0 with "keep-alive" and without "close". A hint:
	// servers differ where both are given, so what follows is a head all the same.
	KeepAlive bool
	HeadLen   int // with the empty line
}

// Response is the head of a response whose end is known.
type Response struct {
	Status int
	Proto  string
	Fields []Field
	// Interim: 1xx but 101. Another head follows it.
	Interim bool
	// Exactly one of the following describes the body, unless Interim.
	NoBody        bool  // 204, 304, or the request was HEAD: whatever the fields say
	ContentLength int64 // -1: none
	Chunked       bool
	UntilClose    bool // neither: it ends with the connection

	KeepAlive bool // as in Request
	HeadLen   int
}

// ParseRequest decides about the request head at the beginning of b; what follows the
// head is not looked at. Request is set when the outcome is Route.
//
// The pins h2, tls and opaque are meant for the first head of a connection. On a
// connection that has carried a request before, the caller answers 400 instead.
func ParseRequest(b []byte) (Request, Outcome) {
	var r Request
	p := parser{b: b, limit: MaxHead}
	out := p.run(func() { p.request(&r) })
	if out.Kind != Route {
		return Request{}, out
	}
	r.HeadLen = out.At
	return r, out
}

// ParseResponse decides about the response head at the beginning of b, the answer to a
// request with this method: Route means that its end is known, Pin that the bytes that
// follow cannot be framed or are no longer HTTP/1. It never rejects.
func ParseResponse(b []byte, method string) (Response, Outcome) {
	var r Response
	p := parser{b: b, response: true}
	out := p.run(func() { p.responseHead(&r, method) })
	if out.Kind != Route {
		return Response{}, out
	}
	r.HeadLen = out.At
	return r, out
}

// ParseChunkLine reads the line that begins a chunk: its size, and the length of the
// line with its CR LF. Route means that the line is whole and good.
func ParseChunkLine(b []byte) (size int64, n int, out Outcome) {
	p := parser{b: b}
	out = p.run(func() { size = p.chunkLine() })
	if out.Kind != Route {
		return 0, 0, out
	}
	return size, out.At, out
}
