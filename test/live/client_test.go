// SPDX-License-Identifier: Apache-2.0

package live

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

const (
	// patience is how long an answer may take.
	patience = 10 * time.Second
	// early is how long the client may take to send the rest of a connection's first method, whose beginning its TCP
	// would else repeat alone: it is then taken for something else than HTTP.
	early = 150 * time.Millisecond
	// late is how long a head may take.
	late = 4 * time.Second
)

const (
	reset     = "reset"
	noAnswer  = "no answer"
	nothing   = "the end, without an answer"
	completed = 6 // ways to end a head that is not whole
)

// script is how a pair is sent; it follows from the pair alone.
type script struct {
	bytes []byte // with the request's body, and without what is behind it
	cuts  []int  // ascending; a segment ends at each
	fresh bool   // on a new connection
}

// scriptOf completes the request's bytes to what a server can answer.
func scriptOf(p pair) script {
	r := rand.New(rand.NewPCG(p.draws, 1))
	b := bytes.Clone(p.request)
	var q head.Request
	var out head.Outcome
	s := script{}
	for range completed {
		if q, out = head.ParseRequest(b); out.Kind != head.Incomplete {
			break
		}
		s.cuts = []int{len(b)}
		b = append(b, pick(r, "\r\n\r\n", "\n\r\n", " HTTP/1.1\r\nHost: a.b\r\n\r\n", "/ HTTP/1.1\r\nhost: b\r\n\r\n", " / HTTP/1.1\r\nHost: a.b:80\r\n\r\n")...)
	}
	if out.Kind == head.Incomplete {
		b = append(b, "\n\n"...) // no head goes on so
		_, out = head.ParseRequest(b)
	}
	if out.Kind == head.Route {
		b = append(b[:q.HeadLen:q.HeadLen], bodyFor(r, &q)...)
	}
	s.bytes = b
	s.fresh = r.IntN(12) == 0 || out.Kind == head.Pin && r.IntN(3) > 0
	switch {
	case r.IntN(30) == 0 && len(b) < 300:
		for i := range b {
			s.cuts = append(s.cuts, i)
		}
	case r.IntN(3) == 0:
		for range 1 + r.IntN(4) {
			s.cuts = append(s.cuts, r.IntN(len(b)))
		}
	}
	slices.Sort(s.cuts)
	return s
}

// bodyFor makes the body that a head announces.
func bodyFor(r *rand.Rand, q *head.Request) []byte {
	var b bytes.Buffer
	random := func(n int) {
		for range n {
			b.WriteByte(byte(r.Uint32()))
		}
	}
	if !q.Chunked {
		if n := q.ContentLength; n > longest {
			random(cutOff)
		} else {
			random(int(max(n, 0)))
		}
		return b.Bytes()
	}
	for range r.IntN(5) {
		n := pick(r, 1, 9, 10, 16, 255, 3000)
		fmt.Fprintf(&b, pick(r, "%x", "%X", "000%x"), n)
		b.WriteString(pick(r, "", "", ";a=b", ";"+strings.Repeat("x", 63)) + "\r\n")
		random(n)
		b.WriteString("\r\n")
	}
	b.WriteString("0\r\n" + pick(r, "", "", "x-trailer: a\r\n", "a: b\r\nc: d\r\n") + "\r\n")
	return b.Bytes()
}

// conn is a connection to a world.
type conn struct {
	*net.TCPConn
	r     *bufio.Reader
	state state
	said  []pair // all that was sent on it
	last  int    // status that was answered
}

// dial connects from an enrolled pod.
func (l *lab) dial(w *world, p *node.Pod) (*conn, error) {
	c, res, err := p.Conn(l.ctx, wire.Dial{Network: wire.TCP, Addr: w.at.String(), Timeout: patience})
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, errors.New("connect: " + res.Errno)
	}
	if res.Peer != w.at.String() {
		c.Close()
		return nil, fmt.Errorf("getpeername says %s, want %s", res.Peer, w.at)
	}
	return &conn{TCPConn: c, r: bufio.NewReader(c)}, nil
}

// errSlow: this process was too slow for the pair to say anything.
var errSlow = errors.New("the client was too slow")

// exchange sends a pair and says what came of it.
func (c *conn) exchange(s script, e expected) (observed, error) {
	start := time.Now()
	_ = c.SetDeadline(start.Add(patience))
	method := bytes.IndexByte(s.bytes, ' ')
	from := 0
	var told error // a system call tells once that the connection was reset
	for _, at := range append(slices.Clone(s.cuts), len(s.bytes)) {
		if at <= from {
			continue
		}
		if _, err := c.Write(s.bytes[from:at]); err != nil && told == nil {
			told = err
		}
		if took := time.Since(start); took > late || from <= method && !c.state.used && took > early {
			return observed{}, errSlow
		}
		from = at
	}
	if e.ending == pinned {
		_ = c.CloseWrite() // the server then says what it got
		return c.readStream(), nil
	}
	o := c.readAnswer(methodOf(s.bytes))
	if o.failure == nothing && told != nil {
		o.failure = failureOf(told)
	}
	if o.failure == "" && (e.ending == ends || e.cutShort() && o.server != "" || o.ended) {
		if o.ended, o.failure = c.readEnd(); o.failure != "" {
			o.failure = fmt.Sprintf("%s, behind the answer %d of %q", o.failure, o.status, o.server)
		}
	}
	if o.failure == "" && c.r.Buffered() > 0 {
		rest, _ := c.r.Peek(c.r.Buffered())
		o.failure = fmt.Sprintf("bytes behind the answer: %.200q", rest)
	}
	return o, nil
}

// methodOf is HEAD where the answer has no body.
func methodOf(b []byte) string {
	if bytes.HasPrefix(b, []byte("HEAD ")) {
		return http.MethodHead
	}
	return http.MethodGet
}

// readAnswer reads an answer in HTTP.
func (c *conn) readAnswer(method string) (o observed) {
	for {
		switch start, err := c.r.Peek(len(notHTTP)); {
		case string(start) == notHTTP:
			return c.readStream()
		case err != nil && len(start) == 0: // it would not be told again
			o.failure = failureOf(err)
			return o
		}
		res, err := http.ReadResponse(c.r, &http.Request{Method: method})
		if err != nil {
			o.failure = failureOf(err)
			return o
		}
		if res.StatusCode == http.StatusContinue {
			continue
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			o.failure = fmt.Sprintf("reading the body of %d: %s", res.StatusCode, failureOf(err))
			return o
		}
		o.status, o.location = res.StatusCode, res.Header.Get("Location")
		o.server, o.sum = res.Header.Get("X-Server"), res.Header.Get("X-Got")
		o.body, o.bodyLen, o.ended = string(body), len(body), res.Close
		if o.server == "" {
			o.failure = localFaults(res, method, body)
			return o
		}
		want := replyTo(method, res.Proto, o.sum)
		if method == http.MethodHead {
			want.body = ""
		}
		if res.StatusCode != want.status || o.body != want.body {
			o.failure = fmt.Sprintf("the answer of %s has status %d and %d bytes, want %d and %d", o.server, res.StatusCode, len(body), want.status, len(want.body))
		}
		return o
	}
}

// localFaults says what is wrong with an answer of the program's own in itself.
func localFaults(res *http.Response, method string, body []byte) string {
	bodyless := res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified
	switch {
	case res.ContentLength < 0 && !bodyless:
		return fmt.Sprintf("a local answer %d without length", res.StatusCode)
	case res.StatusCode >= 400 && res.ContentLength > 0 && len(body) == 0 && method != http.MethodHead:
		return fmt.Sprintf("a local answer %d without its body", res.StatusCode)
	}
	return ""
}

// readStream reads what a server says of bytes that were not a request.
func (c *conn) readStream() (o observed) {
	text, err := io.ReadAll(c.r)
	if err != nil {
		o.failure = failureOf(err)
		return o
	}
	words := strings.Fields(string(text))
	if len(words) != 4 || words[0] != notHTTP || words[1] != "pin" {
		o.failure = fmt.Sprintf("%.300q", text)
		if len(text) == 0 {
			o.failure = nothing
		}
		return o
	}
	o.raw, o.ended, o.server, o.sum = true, true, words[2], words[3]
	return o
}

// readEnd says whether the connection ends, with nothing before.
func (c *conn) readEnd() (ended bool, failure string) {
	b, err := c.r.ReadByte()
	switch {
	case errors.Is(err, io.EOF):
		return true, ""
	case err != nil:
		return false, "at the end: " + failureOf(err)
	}
	_ = c.r.UnreadByte()
	return false, fmt.Sprintf("a byte %q where the connection should end", b)
}

func failureOf(err error) string {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return noAnswer
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return reset
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return nothing
	}
	return err.Error()
}

// next is the state after a pair.
func (s state) next(allowed []outcome) state {
	out := state{used: true}
	for _, o := range allowed {
		out.leg = o.cluster
	}
	return out
}

// say sends one pair on the connection; wrong is not empty if what is seen is not what the reference allows.
func (c *conn) say(w *world, m *explain.Matcher, p pair, s script) (e expected, allowed []outcome, wrong string, err error) {
	e = w.expect(m, s.bytes, c.state)
	c.said = append(c.said, p)
	o, err := c.exchange(s, e)
	if err != nil {
		return e, nil, "", err
	}
	if allowed, wrong = w.judge(e, o, s.bytes); wrong != "" {
		wrong = fmt.Sprintf("%s\n client     %s\n reference  %s", wrong, o, e)
	}
	c.state, c.last = c.state.next(allowed), o.status
	return e, allowed, wrong, nil
}
