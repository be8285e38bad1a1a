// SPDX-License-Identifier: Apache-2.0

package match

import (
	"strconv"
	"strings"

	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// draft is a request before it is bytes.
type draft struct {
	method, path, proto string
	query               []string
	host                string
	lines               [][2]string
}

// Request makes the head of a request that meets, or nearly meets, a route of cfg, or
// several routes in part. A few are spoilt as bytes, so that the grammar refuses them.
func (g *Generator) Request(cfg *mesh.HTTP) []byte {
	vh := pick(g, cfg.VirtualHosts...)
	d := draft{
		method: pick(g, "GET", "GET", "GET", "POST", "OPTIONS", "HEAD", "get"),
		path:   g.segments(),
		proto:  pick(g, "1.1", "1.1", "1.1", "1.1", "1.1", "1.1", "1.1", "1.0"),
		host:   g.hostIn(pick(g, vh.Domains...)),
	}
	g.meet(&d, pick(g, vh.Routes...))
	if g.oneIn(3) { // and what another route asks of headers and query
		other := pick(g, vh.Routes...)
		path := d.path
		g.meet(&d, other)
		d.path = path
	}
	for range pick(g, 0, 0, 0, 1, 2) {
		g.spoil(&d)
	}
	for range pick(g, 0, 0, 1, 2) {
		name := g.headerName()
		d.lines = append(d.lines, [2]string{name, g.valueOf(name)})
	}
	g.r.Shuffle(len(d.lines), func(i, j int) { d.lines[i], d.lines[j] = d.lines[j], d.lines[i] })
	if g.oneIn(100) {
		g.grow(&d)
	}
	b := g.bytes(&d)
	if g.oneIn(8) {
		b = g.damage(b)
	}
	return b
}

// grow brings a request to its limits of size, or just over them.
func (g *Generator) grow(d *draft) {
	near := func(limit int) int { return limit - 3 + g.r.IntN(6) }
	switch g.r.IntN(3) {
	case 0:
		for range near(head.MaxFields) {
			d.lines = append(d.lines, [2]string{"x", ""})
		}
	case 1:
		d.lines = append(d.lines, [2]string{"y", strings.Repeat("b", near(head.MaxHead)-len(g.bytes(d)))})
	default:
		d.path += strings.Repeat("b", near(head.MaxHead)-len(g.bytes(d)))
	}
}

// hostIn is a host of the domain.
func (g *Generator) hostIn(domain string) string {
	host := strings.Replace(domain, "*", pick(g, "a", "b", "x.a", "a.b", "c-a"), 1)
	if g.oneIn(4) && !strings.HasSuffix(host, ":80") {
		host += pick(g, ":80", ":8080")
	}
	if g.oneIn(6) {
		host = strings.ToUpper(host)
	}
	return host
}

// meet makes d meet the route.
func (g *Generator) meet(d *draft, route *mesh.Route) {
	p := route.Match.Path
	switch p.Kind {
	case mesh.PathRegex:
		d.path = g.sample(p.Value)
		if !strings.HasPrefix(d.path, "/") && !g.oneIn(10) {
			d.path = "/" + d.path
		}
	case mesh.PathExact:
		d.path = p.Value
	case mesh.PathPrefix:
		d.path = p.Value + g.word()
	case mesh.PathSegmentPrefix:
		d.path = p.Value + pick(g, "", "/", g.segments())
	}
	if p.IgnoreCase {
		d.path = g.recase(d.path)
	}
	for _, h := range route.Match.Headers {
		g.meetHeader(d, h)
	}
	for _, q := range route.Match.Query {
		value := g.word()
		if !q.Present {
			value = g.meetString(q.Match)
		}
		d.query = append(d.query, q.Name+pick(g, "=", "=", "=", "=", "==", "")+value)
	}
}

func (g *Generator) meetHeader(d *draft, h mesh.HeaderMatch) {
	value := g.value()
	switch h.Kind {
	case mesh.HeaderAbsent:
		if !h.Invert {
			return
		}
	case mesh.HeaderPresent:
		if h.Invert {
			return
		}
	case mesh.HeaderRange:
		value = g.number(h)
	case mesh.HeaderString:
		if !h.Invert || g.oneIn(2) {
			value = g.meetString(h.Match)
		}
	}
	switch h.Name {
	case ":method":
		d.method = value
	case ":authority", "host":
		if value != "" {
			d.host = value
		}
	default:
		if first, rest, ok := strings.Cut(value, ","); ok && g.oneIn(2) {
			// The same value in two fields.
			d.lines = append(d.lines, [2]string{h.Name, first})
			value = rest
		}
		d.lines = append(d.lines, [2]string{h.Name, value})
	}
}

// number is one in or near the range.
func (g *Generator) number(h mesh.HeaderMatch) string {
	n := pick(g, h.Start, h.Start-1, h.End-1, h.End, h.Start/2+h.End/2, -h.Start, int64(g.r.IntN(200)-50))
	text := strconv.FormatInt(n, 10)
	switch g.r.IntN(12) {
	case 0:
		return "+" + text
	case 1:
		return strings.Replace(text, "-", "-00", 1)
	case 2:
		return "0" + text
	case 3:
		return text + pick(g, "0", ".0", " ", "x", ",", "\t0")
	case 4:
		return pick(g, "", "-", "+", "-0", "9223372036854775808", "-9223372036854775809", "--1")
	default:
		return text
	}
}

// meetString is a string that meets the match.
func (g *Generator) meetString(s mesh.StringMatch) string {
	v := s.Value
	switch s.Kind {
	case mesh.StringPrefix:
		v += g.word()
	case mesh.StringSuffix:
		v = g.word() + v
	case mesh.StringContains:
		v = g.word() + v + g.word()
	case mesh.StringRegex:
		return g.sample(v)
	}
	if s.IgnoreCase {
		v = g.recase(v)
	}
	return v
}

// recase changes the case of some letters.
func (g *Generator) recase(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c|0x20 >= 'a' && c|0x20 <= 'z' && g.oneIn(2) {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// spoil changes one thing.
func (g *Generator) spoil(d *draft) {
	switch g.r.IntN(8) {
	case 0:
		d.path = g.edit(d.path)
	case 1:
		d.host = pick(g, g.edit(d.host), "a.b", "c", "b.a.b", "x-a.b")
	case 2:
		d.method = g.edit(d.method)
	case 3:
		if len(d.query) > 0 {
			i := g.r.IntN(len(d.query))
			d.query[i] = g.edit(d.query[i])
		} else {
			d.query = append(d.query, g.word())
		}
	case 4:
		g.r.Shuffle(len(d.query), func(i, j int) { d.query[i], d.query[j] = d.query[j], d.query[i] })
	default:
		if len(d.lines) == 0 {
			return
		}
		i := g.r.IntN(len(d.lines))
		switch g.r.IntN(4) {
		case 0:
			d.lines = append(d.lines[:i:i], d.lines[i+1:]...)
		case 1:
			d.lines = append(d.lines, d.lines[i])
		case 2:
			d.lines = append(d.lines, [2]string{d.lines[i][0], g.valueOf(d.lines[i][0])})
		default:
			d.lines[i][1] = g.edit(d.lines[i][1])
		}
	}
}

// valueOf is a value for this header, which the grammar takes if it knows the name.
func (g *Generator) valueOf(name string) string {
	if g.oneIn(20) {
		return g.value()
	}
	switch name {
	case "content-length":
		return pick(g, "0", "1", "10", "007", "9223372036854775807")
	case "transfer-encoding":
		return pick(g, "chunked", "Chunked")
	case "connection":
		return pick(g, "close", "keep-alive", "a, Close ,b", "upgrade", "closed", "\xff, close", "keep-alive,\xc3")
	case "expect":
		return pick(g, "100-continue", "100-Continue", "100-continue, a", "\xff")
	default:
		return g.value()
	}
}

// edit changes a byte or its case, adds one or takes one away.
func (g *Generator) edit(s string) string {
	if s == "" {
		return pick(g, "a", "/", ",")
	}
	i := g.r.IntN(len(s))
	switch g.r.IntN(5) {
	case 0:
		return s[:i] + s[i+1:]
	case 1:
		return s[:i] + pick(g, "a", "b", "/", "1", ",", "\xff") + s[i:]
	case 2:
		return s + pick(g, "a", "/", ",", ".")
	case 3:
		return s[:i] + g.recase(s[i:])
	default:
		return s[:i] + pick(g, "a", "b", "A", "-", "\xc3") + s[i+1:]
	}
}

// bytes writes the head.
func (g *Generator) bytes(d *draft) []byte {
	target := d.path
	if len(d.query) > 0 || g.oneIn(12) {
		target += "?" + strings.Join(d.query, pick(g, "&", "&", "&", "&&"))
	}
	if g.oneIn(12) && target != "*" {
		target = pick(g, "http://", "https://", "HTTP://") + d.host + target
	}
	text := d.method + " " + target + " HTTP/" + d.proto + "\r\n"
	host := g.recase("host") + ":" + pick(g, " ", " ", "", "\t") + d.host + "\r\n"
	if d.proto == "1.0" && g.oneIn(2) {
		host = ""
	}
	at := g.r.IntN(len(d.lines) + 1)
	for i, line := range d.lines {
		if i == at {
			text += host
			host = ""
		}
		if line[0] == "host" {
			continue
		}
		text += g.recase(line[0]) + ":" + pick(g, " ", " ", " ", "", "  ", "\t ") + line[1] + pick(g, "", "", "", " ", "\t") + "\r\n"
	}
	return []byte(text + host + "\r\n" + pick(g, "", "", "", "body", "GET / HTTP/1.1\r\n"))
}

// damage changes bytes without regard to what they mean.
func (g *Generator) damage(b []byte) []byte {
	i := g.r.IntN(len(b))
	insert := func(s string) []byte { return append(b[:i:i], append([]byte(s), b[i:]...)...) }
	switch g.r.IntN(6) {
	case 0:
		return b[:i]
	case 1:
		return append(b[:i:i], b[i+1:]...)
	case 2:
		return insert(pick(g, "\r\n", "\n", "\r", " ", "\t", ":", "\x00", "#", "\x7f", "/", ",", "\r\n ", "*"))
	case 3:
		return insert(pick(g, "\r\nContent-Length: 1", "\r\nTransfer-Encoding: chunked", "\r\nHost: a", "\r\nConnection: close",
			"\r\nExpect: 100-continue", "\r\nUpgrade: h2c", "HTTP/", "http://", "CONNECT ", "\x16\x03"))
	case 4:
		start := pick(g, "CONNECT a:1", "PRI * HTTP/2.0", "\x16\x03\x01", "\x16\x01", "OPTIONS *", "PRI * HTTP/1.1", "GET / HTTP/2.0", "GET / HTTP/1.2", "get key", "get key  HTTP/1.1", "get key 0 0",
			"GET ftp://a/ HTTP/1.1", "GET h2+.-://a", "GET 1a://b HTTP/1.1", "GET http:/a HTTP/1.1", "get a:b://c")
		_, rest, _ := strings.Cut(string(b), "\r\n")
		return []byte(start + "\r\n" + rest)
	default:
		b[i] = byte(g.r.IntN(256))
		return b
	}
}
