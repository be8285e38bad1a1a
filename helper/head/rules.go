// SPDX-License-Identifier: Apache-2.0

package head

// Rule is one row of what is done with a head, and why.
type Rule struct {
	ID     string
	Input  string // what is read
	Action Kind   // Route, Reject or Pin
	Status int    // of a Reject
	Reason Reason // of a Pin
	Part   Part
	Why    string
}

// Part says where a rule belongs.
type Part uint8

// The parts.
const (
	PartRequest  Part = iota // decided by ParseRequest
	PartResponse             // decided by ParseResponse only
	PartChunk                // decided by ParseChunkLine
	PartFlow                 // of the connection and its packets: decided where these are seen
)

func (p Part) String() string {
	return [...]string{"request head", "response head", "chunk", "connection"}[p]
}

// Rules is the table of all rules. RULES.md is made from it. The grammar that says at
// which byte each fires is in the package comment.
var Rules = []Rule{
	// How a connection begins.
	{ID: "tls", Input: "first bytes `16 03`", Action: Pin, Reason: TLS,
		Why: "a TLS record: nothing to read"},
	{ID: "h2", Input: "`PRI * HTTP/2`", Action: Pin, Reason: H2,
		Why: "the HTTP/2 preface (9113 3.4): the connection is routed, not its requests"},
	{ID: "opaque", Input: "no method, SP, and `/`, `*` or scheme `://` (or a third word `HTTP/`)", Action: Pin, Reason: Opaque,
		Why: "no HTTP/1 server reads a request in it"},
	{ID: "connect", Input: "method `CONNECT`; a 2xx to it", Action: Pin, Reason: Connect,
		Why: "a tunnel (9110 9.3.6): its authority names no service of the mesh"},
	{ID: "leading-blank", Input: "CR, LF, SP, HTAB, VT or FF before the method", Action: Reject, Status: 400,
		Why: "some servers skip it (9112 2.2), some refuse it: routed it would be misread, pinned it would pass unmatched"},

	// The request line.
	{ID: "request-line-blank", Input: "HTAB, VT or FF after the method; any blank before the target", Action: Reject, Status: 400,
		Why: "lenient parsers take it as SP (9112 3)"},
	{ID: "target-form", Input: "target of another scheme and `://`; or one without, before `HTTP/`", Action: Reject, Status: 400,
		Why: "none of the four forms (9112 3.2); some servers take a scheme without a version after the target (HTTP/0.9)"},
	{ID: "target-byte", Input: "CTL, CR or LF in the target; no version", Action: Reject, Status: 400,
		Why: "9112 3.2; a request without version is HTTP/0.9"},
	{ID: "fragment", Input: "`#` in the target", Action: Reject, Status: 400,
		Why: "never sent (9110 7.1); some servers cut it off, some take it as part of the path"},
	{ID: "target-authority", Input: "absolute form whose authority is empty, has user information or is no host", Action: Reject, Status: 400,
		Why: "9110 4.2.4; as for Host"},
	{ID: "star-target", Input: "`*` with another method than OPTIONS, or followed by something", Action: Reject, Status: 400,
		Why: "9112 3.2.4"},
	{ID: "options-star", Input: "`OPTIONS *`", Action: Route, Part: PartRequest,
		Why: "path `*`; the prefix `/` matches it, so the default route takes it"},
	{ID: "absolute-form", Input: "absolute form with the same Host", Action: Route,
		Why: "9112 3.2.2: routed by the authority, which is that of Host"},
	{ID: "path-not-canonical", Input: "`//`, `/./`, `/../`, escapes, `\\`, bytes above 7e in the target", Action: Route,
		Why: "matched as sent, because it is sent on as it came; ports with authorization by path refuse it"},
	{ID: "version", Input: "what follows the target is not exactly one SP, `HTTP/`, digit, `.`, digit, CR LF", Action: Reject, Status: 400,
		Why: "9112 2.3"},
	{ID: "version-unsupported", Input: "a version that is neither 1.0 nor 1.1", Action: Reject, Status: 505,
		Why: "9110 15.6.6"},

	// Lines.
	{ID: "bare-lf", Input: "LF without CR at the end of a line", Action: Reject, Status: 400,
		Why: "legal to tolerate (9112 2.2), but servers differ"},
	{ID: "bare-cr", Input: "CR without LF after it", Action: Reject, Status: 400,
		Why: "9112 2.2: some take it as a line's end, some as a blank"},
	{ID: "obs-fold", Input: "line that begins with SP or HTAB (also the first)", Action: Reject, Status: 400,
		Why: "9112 5.2: a continuation for some, a field for others"},
	{ID: "blank-before-colon", Input: "SP or HTAB between name and `:`", Action: Reject, Status: 400,
		Why: "9112 5.1"},
	{ID: "field-name", Input: "name that is empty or no token; line without `:`", Action: Reject, Status: 400,
		Why: "9110 5.1"},
	{ID: "field-value-byte", Input: "NUL or another CTL but HTAB in a value", Action: Reject, Status: 400,
		Why: "9110 5.5"},
	{ID: "underscore", Input: "`_` in a name", Action: Route,
		Why: "a token; not the same as `-`"},
	{ID: "too-many-fields", Input: "more than 100 fields", Action: Reject, Status: 431,
		Why: "bounds the work; 6585 5"},
	{ID: "head-too-long", Input: "head of more than 8192 bytes", Action: Reject, Status: 431,
		Why: "it is held until it is matched; 6585 5"},

	// Host.
	{ID: "host-missing", Input: "no Host in HTTP/1.1 or with the absolute form", Action: Reject, Status: 400,
		Why: "9112 3.2"},
	{ID: "repeated-host", Input: "Host twice, equal or not", Action: Reject, Status: 400,
		Why: "9112 3.2"},
	{ID: "host", Input: "Host that is empty or not letters, digits, `.`, `-`, `_` or an IPv6 address in brackets, then perhaps `:` and 1 to 5 digits", Action: Reject, Status: 400,
		Why: "9112 3.2; lists, escapes and user information are read differently"},
	{ID: "host-differs", Input: "absolute form with another Host (as bytes)", Action: Reject, Status: 400,
		Why: "9112 3.2.2: servers differ in which one they take"},

	// The body's length.
	{ID: "repeated-content-length", Input: "Content-Length twice, equal or not", Action: Reject, Status: 400,
		Why: "9112 6.3: it cannot be merged, since the bytes go on as they are"},
	{ID: "content-length", Input: "Content-Length that is a list, has a sign, is no number, has more than 19 digits or is greater than 2^63-1", Action: Reject, Status: 400,
		Why: "9110 8.6"},
	{ID: "te-with-content-length", Input: "Transfer-Encoding and Content-Length", Action: Reject, Status: 400,
		Why: "9112 6.1, 6.3: smuggling"},
	{ID: "transfer-encoding", Input: "Transfer-Encoding that is not exactly `chunked`: another coding, a list, a HTAB, quotes, a blank after it", Action: Reject, Status: 400,
		Why: "9112 6.1; disguises that one of two parsers sees through"},
	{ID: "repeated-transfer-encoding", Input: "Transfer-Encoding twice", Action: Reject, Status: 400,
		Why: "a list: chunked more than once (9112 6.1)"},
	{ID: "te-in-1.0", Input: "Transfer-Encoding in HTTP/1.0", Action: Reject, Status: 400,
		Why: "9112 6.1: framing is faulty"},
	{ID: "chunk-size", Input: "chunk size that is not 1 to 16 hex digits, or greater than 2^63-1", Action: Reject, Status: 400, Part: PartChunk,
		Why: "9112 7.1; in a response, or once the head has gone: the flow is reset"},
	{ID: "chunk-extension", Input: "chunk extension of more than 64 bytes, or with a CTL but HTAB", Action: Reject, Status: 400, Part: PartChunk,
		Why: "9112 7.1.1: shorter ones are ignored by everybody"},

	// What changes how a connection goes on.
	{ID: "expect-continue", Input: "`Expect: 100-continue`", Action: Route,
		Why: "the body may wait for a 100 (9110 10.1.1)"},
	{ID: "upgrade", Input: "Upgrade, h2c too", Action: Route,
		Why: "matched; the connection pins at 101. Ports with authorization refuse it"},
	{ID: "status-line", Input: "status line that is not HTTP/1.0 or 1.1 and a status from 100 to 599", Action: Pin, Reason: Malformed, Part: PartResponse,
		Why: "9112 4; every rule about lines and lengths pins a response likewise"},
	{ID: "switching", Input: "101", Action: Pin, Reason: Upgraded, Part: PartResponse,
		Why: "another protocol follows (9110 15.2.2)"},
	{ID: "interim", Input: "1xx but 101", Action: Route, Part: PartResponse,
		Why: "another head follows (9110 15.2)"},
	{ID: "no-body", Input: "204, 304, or any response to HEAD", Action: Route, Part: PartResponse,
		Why: "no body, whatever the fields say (9112 6.3)"},
	{ID: "until-close", Input: "response with neither Content-Length nor Transfer-Encoding", Action: Route, Part: PartResponse,
		Why: "the body ends with the connection (9112 6.3): it cannot be re-bound"},

	// Of the connection.
	{ID: "pipelined", Input: "bytes after the head and its body, before the response ends", Action: Route, Part: PartFlow,
		Why: "a request of its own: it goes on if it resolves to the same cluster, else it is held until the response ends"},
	{ID: "slow-head", Input: "head that is not whole after 5 s", Action: Reject, Status: 408, Part: PartFlow,
		Why: "9110 15.5.9"},
	{ID: "segment-order", Input: "overlapping or out-of-order segments inside a head", Action: Route, Part: PartFlow,
		Why: "only bytes exactly in order are taken, the rest is dropped until the head ends: the endpoint sees what was matched"},
	{ID: "urg", Input: "URG on a flow with HTTP routes", Action: Route, Part: PartFlow,
		Why: "flag and pointer are cleared: the receiver would take the byte out of the stream that was matched"},
}

// ruleByID finds a rule.
var ruleByID = func() map[string]Rule {
	m := make(map[string]Rule, len(Rules))
	for _, rule := range Rules {
		m[rule.ID] = rule
	}
	return m
}()
