// SPDX-License-Identifier: Apache-2.0

package head

import (
	"math"
	"strings"
)

// parser reads bytes from left to right. A decision leaves it by a panic with an
// Outcome, which run catches: so the code below reads as the grammar does.
type parser struct {
	b        []byte
	i        int  // bytes read
	limit    int  // of the head; 0: none
	response bool // rules pin instead of rejecting, and there are no limits
}

// run calls read and returns the decision that it ended with; Route if it returned.
func (p *parser) run(read func()) (out Outcome) {
	defer func() {
		if v := recover(); v != nil {
			decided, ok := v.(Outcome)
			if !ok {
				panic(v)
			}
			out = decided
		}
	}()
	read()
	return Outcome{Kind: Route, At: p.i}
}

// next reads a byte.
func (p *parser) next() byte {
	if p.i == len(p.b) {
		panic(Outcome{})
	}
	c := p.b[p.i]
	p.i++
	if p.limit > 0 && p.i > p.limit {
		p.fire("head-too-long")
	}
	return c
}

// fire decides by a rule of the table, at the byte read last.
func (p *parser) fire(id string) {
	rule, ok := ruleByID[id]
	if !ok {
		panic("head: no rule " + id)
	}
	out := Outcome{Kind: rule.Action, At: p.i, Rule: id, Status: rule.Status, Reason: rule.Reason}
	if p.response && rule.Action == Reject {
		out = Outcome{Kind: Pin, At: p.i, Rule: id, Reason: Malformed}
	}
	panic(out)
}

// must reads the bytes of want; another one fires the rule.
func (p *parser) must(want, rule string) {
	for i := range len(want) {
		if p.next() != want[i] {
			p.fire(rule)
		}
	}
}

// lf reads the LF that has to follow a CR.
func (p *parser) lf() { p.must("\n", "bare-cr") }

func (p *parser) request(r *Request) {
	r.ContentLength = -1
	r.Method = p.method()
	if r.Method == "CONNECT" {
		p.fire("connect")
	}
	start := p.i
	authority := p.target(r)
	r.Target = string(p.b[start : p.i-1]) // the SP after it is read
	r.Absolute = authority != ""
	r.Proto = p.version()

	f := p.fields(r.Proto)
	r.Fields = f.all
	r.Authority = f.host
	r.ContentLength, r.Chunked = f.contentLength, f.chunked
	r.Upgrade, r.Expect100, r.KeepAlive = f.upgrade, f.expect100, f.keepAlive
	r.Host, r.Port = SplitHost(r.Authority)
	switch {
	case r.Authority == "" && (r.Proto == "HTTP/1.1" || r.Absolute):
		p.fire("host-missing")
	case r.Absolute && authority != r.Authority:
		p.fire("host-differs")
	}
	p.framing(r.Proto, f)
}

// framing fires the rules about fields that contradict each other.
func (p *parser) framing(proto string, f fields) {
	switch {
	case f.chunked && f.contentLength >= 0:
		p.fire("te-with-content-length")
	case f.chunked && proto == "HTTP/1.0":
		p.fire("te-in-1.0")
	}
}

// method reads the method and the SP after it.
func (p *parser) method() string {
	c := p.next()
	switch {
	case c == 0x16:
		if p.next() == 0x03 {
			p.fire("tls")
		}
		p.fire("opaque")
	case strings.IndexByte("\r\n \t\v\f", c) >= 0:
		p.fire("leading-blank")
	case !isTchar(c):
		p.fire("opaque")
	}
	for {
		switch c := p.next(); {
		case isTchar(c):
		case c == ' ':
			return string(p.b[:p.i-1])
		case c == '\t' || c == '\v' || c == '\f':
			p.fire("request-line-blank")
		case c == '\r':
			p.lf()
			p.fire("opaque")
		default:
			p.fire("opaque")
		}
	}
}

// target reads the target and the SP after it, sets path and query, and returns the
// authority of the absolute form.
func (p *parser) target(r *Request) (authority string) {
	switch c := p.next(); {
	case c == '/':
		p.path(r)
	case c == '*':
		p.star(r)
	case strings.IndexByte(" \t\v\f", c) >= 0:
		p.fire("request-line-blank")
	case c == '\r':
		p.lf()
		p.fire("opaque")
	default:
		p.scheme(c)
		authority = p.authority(r)
	}
	return authority
}

// star reads what follows a target that begins with "*".
func (p *parser) star(r *Request) {
	switch r.Method {
	case "OPTIONS":
		p.must(" ", "star-target")
		r.Path = "*"
	case "PRI":
		p.must(" HTTP/2", "star-target")
		p.fire("h2")
	default:
		p.fire("star-target")
	}
}

// scheme reads up to "http://" or "https://". Another scheme and "://" is a target that
// is refused. Any other word is no target; whether it is the target of a request at all,
// the word after it tells.
func (p *parser) scheme(c byte) {
	word := ""
	for {
		switch {
		case c == ' ':
			for c == ' ' { // llhttp skips them
				c = p.next()
			}
			if c == 'H' {
				p.must("TTP/", "opaque")
				p.fire("target-form")
			}
			p.fire("opaque")
		case isCTL(c):
			p.fire("opaque")
		}
		word += string([]byte{lower(c)})
		if scheme, ok := strings.CutSuffix(word, "://"); ok && isScheme(scheme) {
			if scheme != "http" && scheme != "https" {
				p.fire("target-form")
			}
			return
		}
		c = p.next()
	}
}

// isScheme: RFC 3986, section 3.1, in lower case.
func isScheme(s string) bool {
	for i := range len(s) {
		if !isAlpha(s[i]) && (i == 0 || !isDigit(s[i]) && strings.IndexByte("+-.", s[i]) < 0) {
			return false
		}
	}
	return s != ""
}

// authority reads the authority of an absolute target, and the rest of that.
func (p *parser) authority(r *Request) string {
	start, host := p.i, hostStart
	for {
		c := p.next()
		if strings.IndexByte("/? ", c) < 0 {
			if host = host.next(c); host == hostBad {
				p.fire("target-authority")
			}
			continue
		}
		if !host.whole() {
			p.fire("target-authority")
		}
		end := p.i - 1
		r.Path = "/"
		switch c {
		case '/':
			p.path(r)
		case '?':
			p.query(r)
		}
		return string(p.b[start:end])
	}
}

// path reads a path, of which the "/" is read, with the query and the SP after it.
func (p *parser) path(r *Request) {
	start := p.i - 1
	for {
		c := p.targetByte()
		if c == ' ' || c == '?' {
			r.Path = string(p.b[start : p.i-1])
			if c == '?' {
				p.query(r)
			}
			return
		}
	}
}

// query reads a query, of which the "?" is read, and the SP after it.
func (p *parser) query(r *Request) {
	start := p.i
	for p.targetByte() != ' ' {
	}
	r.HasQuery, r.Query = true, string(p.b[start:p.i-1])
}

// targetByte reads a byte of path or query, or the SP after it.
func (p *parser) targetByte() byte {
	c := p.next()
	switch {
	case c == '#':
		p.fire("fragment")
	case isCTL(c):
		p.fire("target-byte")
	}
	return c
}

// version reads the version and the end of the request line.
func (p *parser) version() string {
	p.must("HTTP/", "version")
	p.digit('1', '1')
	p.must(".", "version")
	minor := p.digit('0', '1')
	switch p.next() {
	case '\r':
	case '\n':
		p.fire("bare-lf")
	default:
		p.fire("version")
	}
	p.lf()
	return "HTTP/1." + string([]byte{minor})
}

// digit reads a digit of the version, from first to last.
func (p *parser) digit(first, last byte) byte {
	c := p.next()
	switch {
	case c < '0' || c > '9':
		p.fire("version")
	case c < first || c > last:
		p.fire("version-unsupported")
	}
	return c
}

func (p *parser) responseHead(r *Response, method string) {
	p.must("HTTP/1.", "status-line")
	minor := p.oneOf("01")
	p.must(" ", "status-line")
	r.Status = int(p.oneOf("12345")-'0')*100 + int(p.oneOf("0123456789")-'0')*10 + int(p.oneOf("0123456789")-'0')
	p.reason()

	r.Proto = "HTTP/1." + string([]byte{minor})
	f := p.fields(r.Proto)
	p.framing(r.Proto, f)
	r.Fields, r.KeepAlive = f.all, f.keepAlive
	r.ContentLength, r.Chunked = f.contentLength, f.chunked
	switch {
	case r.Status == 101:
		p.fire("switching")
	case r.Status < 200:
		r.Interim = true
	case method == "CONNECT" && r.Status < 300:
		p.fire("connect")
	case method == "HEAD" || r.Status == 204 || r.Status == 304:
		r.NoBody = true
	case !r.Chunked && r.ContentLength < 0:
		r.UntilClose = true
	}
	if r.Interim || r.NoBody {
		r.ContentLength, r.Chunked = -1, false
	}
}

// oneOf reads one of the bytes of set, in the status line.
func (p *parser) oneOf(set string) byte {
	c := p.next()
	if strings.IndexByte(set, c) < 0 {
		p.fire("status-line")
	}
	return c
}

// reason reads what follows the status, to the end of the line.
func (p *parser) reason() {
	for first := true; ; first = false {
		switch c := p.next(); {
		case c == '\r':
			p.lf()
			return
		case c == '\n':
			p.fire("bare-lf")
		case first && c != ' ', isCTL(c) && c != '\t':
			p.fire("status-line")
		}
	}
}

// chunkLine reads the line that begins a chunk.
func (p *parser) chunkLine() int64 {
	const maxDigits, maxExtension = 16, 64
	size, digits := uint64(0), 0
	for {
		c := p.next()
		d := strings.IndexByte("0123456789abcdef", lower(c))
		switch {
		case d >= 0 && digits == maxDigits, d >= 0 && size > math.MaxInt64>>4:
			p.fire("chunk-size")
		case d >= 0:
			size, digits = size<<4|uint64(d), digits+1
		case digits == 0:
			p.fire("chunk-size")
		case c == '\r':
			p.lf()
			return int64(size)
		case c == ';':
			p.chunkExtension(maxExtension)
			return int64(size)
		default:
			p.fire("chunk-size")
		}
	}
}

// chunkExtension reads an extension, of which the ";" is read, to the end of the line.
func (p *parser) chunkExtension(most int) {
	for n := 1; ; n++ {
		switch c := p.next(); {
		case c == '\r':
			p.lf()
			return
		case isCTL(c) && c != '\t', n == most:
			p.fire("chunk-extension")
		}
	}
}
