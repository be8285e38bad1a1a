// SPDX-License-Identifier: Apache-2.0

package match

import (
	"fmt"
	"strings"
)

// field makes one line of a real server's response.
type field struct {
	name  string
	value func(*Generator) string
}

func always(s string) func(*Generator) string { return func(*Generator) string { return s } }

// token makes words as they are in entity tags, cookies and identifiers.
func token(g *Generator) string {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	b := make([]byte, 4+g.r.IntN(44))
	for i := range b {
		b[i] = letters[g.r.IntN(len(letters))]
	}
	return string(b)
}

func date(g *Generator) string {
	return fmt.Sprintf("%s, %02d %s 20%02d %02d:%02d:%02d GMT", pick(g, "Mon", "Sun"), 1+g.r.IntN(28), pick(g, "Jan", "Nov"),
		g.r.IntN(100), g.r.IntN(24), g.r.IntN(60), g.r.IntN(60))
}

// servers are the fields that they send always.
var servers = [][]field{
	{{"Server", always("nginx/1.22.1")}, {"Date", date}, {"Content-Type", always("text/html; charset=utf-8")}, {"Connection", always("keep-alive")}},
	{{"Content-Type", always("application/json")}, {"Date", date}}, // Go
	{{"X-Powered-By", always("Express")}, {"Content-Type", always("application/json; charset=utf-8")}, {"ETag", func(g *Generator) string { return `W/"2a-` + token(g) + `"` }},
		{"Date", date}, {"Connection", always("keep-alive")}, {"Keep-Alive", always("timeout=5")}}, // Node
	{{"Vary", always("Origin")}, {"Vary", always("Access-Control-Request-Method")}, {"Content-Type", always("application/json")}, {"Date", date},
		{"Keep-Alive", always("timeout=60")}, {"Connection", always("keep-alive")}}, // Tomcat
	{{"Date", date}, {"Server", always("Apache/2.4.62 (Debian)")}, {"Keep-Alive", always("timeout=5, max=100")}, {"Connection", always("Keep-Alive")}, {"Content-Type", always("text/html")}},
	{{"content-type", always("text/plain")}, {"date", date}, {"x-envoy-upstream-service-time", func(g *Generator) string { return fmt.Sprint(g.r.IntN(2000)) }}, {"server", always("envoy")}},
	{{"date", date}, {"server", always("uvicorn")}, {"content-type", always("application/json")}},
}

// extras are the fields that they send at times, some of them several times.
var extras = []field{
	{"Last-Modified", date}, {"Expires", date}, {"Cache-Control", always("no-cache, no-store, max-age=0, must-revalidate")}, {"Accept-Ranges", always("bytes")},
	{"ETag", func(g *Generator) string { return `"` + token(g) + `"` }}, {"Vary", always("Accept-Encoding")}, {"Content-Encoding", always("gzip")},
	{"Set-Cookie", func(g *Generator) string {
		return "session=" + token(g) + "; Path=/; HttpOnly; Secure; SameSite=Lax"
	}},
	{"Location", func(g *Generator) string { return "https://shop.example.com/a?b=" + token(g) + "#c" }},
	{"X-Request-Id", token}, {"x-b3-traceid", token}, {"X-Frame-Options", always("DENY")}, {"X-Content-Type-Options", always("nosniff")},
	{"Strict-Transport-Security", always("max-age=31536000; includeSubDomains")}, {"X-XSS-Protection", always("0")}, {"Pragma", always("no-cache")},
	{"Access-Control-Allow-Origin", always("*")}, {"Via", always("1.1 varnish (Varnish/7.1), 1.1 a:80")}, {"Age", func(g *Generator) string { return fmt.Sprint(g.r.IntN(9999)) }},
	{"Content-Language", always("en")}, {"Link", always(`</a.css>; rel=preload; as="style"`)}, {"X-Empty", always("")}, {"Trailer", always("Grpc-Status")},
	{"P3P", always(`CP="~{|}^_!@[]"`)}, {"Content-Security-Policy", always("default-src 'self'; img-src *; script-src 'nonce-abc' https://cdn.example.com")},
}

// Served makes the head of a response as a real server sends it, of up to most fields.
func (g *Generator) Served(most int) []byte {
	status := pick(g, "200 OK", "200 OK", "200 OK", "200 ", "201 Created", "204 No Content", "206 Partial Content", "302 Found", "304 Not Modified", "404 Not Found", "500 Internal Server Error", "503 Service Unavailable")
	lines := append([]field(nil), pick(g, servers...)...)
	for n := min(5, most) + g.r.IntN(max(most-4, 1)); len(lines) < n; {
		lines = append(lines, pick(g, extras...))
	}
	connection := false
	for _, f := range lines {
		connection = connection || f.name == "Connection"
	}
	if !connection && g.oneIn(4) {
		lines = append(lines, field{"Connection", always("close")})
	}
	g.r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	switch at := g.r.IntN(len(lines)); g.r.IntN(8) {
	case 0: // neither: until the connection ends
	case 1, 2:
		lines[at] = field{"Transfer-Encoding", always("chunked")}
	default:
		lines[at] = field{"Content-Length", func(g *Generator) string {
			return fmt.Sprint(g.r.Uint64() >> (24 + g.r.IntN(40)))
		}}
	}
	var b strings.Builder
	b.WriteString("HTTP/1.1 " + status + "\r\n")
	lower := g.oneIn(4)
	for _, f := range lines {
		name := f.name
		if lower {
			name = strings.ToLower(name)
		}
		b.WriteString(name + ": " + f.value(g) + "\r\n")
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}
