// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// Witness is a request that shows something.
type Witness struct {
	Method string
	Host   string // "" : no Host, and HTTP/1.0
	Target string // path and query
	Fields []head.Field
	// Connect is the address and port of the service, for Curl; the address is left
	// out if they are many.
	Connect string
	// without are headers that must not be there, though curl sends them.
	without []string
}

// witness makes the request of a value for each dimension.
func (s *space) witness(made []*value) Witness {
	var w Witness
	var query []string
	for k, v := range made {
		a := s.axes[k]
		switch {
		case v.absent:
			if a.kind == kindHeader && (a.name == "accept" || a.name == "user-agent") {
				w.without = append(w.without, a.name)
			}
		case a.kind == kindHost:
			w.Host = v.text
		case a.kind == kindPath:
			w.Target = v.text
		case a.kind == kindMethod:
			w.Method = v.text
		case a.kind == kindQuery:
			query = append(query, a.name+"="+v.text)
		default:
			w.Fields = append(w.Fields, head.Field{Name: a.name, Value: v.text})
		}
	}
	if len(query) > 0 {
		w.Target += "?" + strings.Join(query, "&")
	}
	return w
}

// Raw is the request's head as it is sent.
func (w *Witness) Raw() []byte {
	var b strings.Builder
	if w.Host == "" {
		fmt.Fprintf(&b, "%s %s HTTP/1.0\r\n", w.Method, w.Target)
	} else {
		fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", w.Method, w.Target, w.Host)
	}
	for _, f := range w.Fields {
		fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// Curl is a command that sends the request.
func (w *Witness) Curl() string {
	args := []string{"curl"}
	add := func(option, value string) { args = append(args, option, shell(value)) }
	host := w.Host
	if host == "" {
		host = "localhost"
		args = append(args, "--http1.0", "-H", "Host:")
	}
	switch w.Method {
	case "GET":
	case "HEAD":
		args = append(args, "-I")
	default:
		add("-X", w.Method)
	}
	for _, name := range w.without {
		args = append(args, "-H", name+":")
	}
	for _, f := range w.Fields {
		if f.Value == "" {
			add("-H", f.Name+";")
		} else {
			add("-H", f.Name+": "+f.Value)
		}
	}
	if w.Connect != "" {
		add("--connect-to", "::"+w.Connect) // wherever the URL says
	}
	if w.Target == "*" {
		add("--request-target", "*")
		return strings.Join(append(args, shell("http://"+host)), " ")
	}
	if strings.ContainsAny(w.Target, "[]{}") || host[0] == '[' {
		args = append(args, "-g")
	}
	if strings.Contains(w.Target, "/.") {
		args = append(args, "--path-as-is")
	}
	return strings.Join(append(args, shell("http://"+host+w.Target)), " ")
}

// shell quotes for a shell where that is needed.
func shell(s string) string {
	plain, printable := s != "", true
	for i := range len(s) {
		c := s[i]
		alnum := '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' && c < 0x80
		plain = plain && (alnum || strings.IndexByte("-_./:=,+@%", c) >= 0)
		printable = printable && ' ' <= c && c < 0x7f
	}
	switch {
	case plain:
		return s
	case printable:
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\'' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case ' ' <= c && c < 0x7f:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String() + "'"
}

// MarshalJSON writes the request in parts, and whole.
func (w Witness) MarshalJSON() ([]byte, error) {
	fields := make([][2]string, len(w.Fields))
	for i, f := range w.Fields {
		fields[i] = [2]string{f.Name, f.Value}
	}
	return json.Marshal(map[string]any{
		"method": w.Method, "host": w.Host, "target": w.Target, "headers": fields,
		"raw": strconv.QuoteToASCII(string(w.Raw())), "curl": w.Curl(),
	})
}

// judge asks the reference about a request: the virtual host and the routes that may
// decide, by number. -1 at the end of the routes: the rest has none.
type judge struct {
	matchers map[*mesh.VirtualHost]*explain.Matcher
}

func (j *judge) chain(h *mesh.HTTP, r *head.Request) (*mesh.VirtualHost, []int) {
	vh := explain.FindVirtualHost(h, r.Authority)
	if vh == nil {
		return nil, nil
	}
	if j.matchers == nil {
		j.matchers = map[*mesh.VirtualHost]*explain.Matcher{}
	}
	m := j.matchers[vh]
	if m == nil {
		m = new(explain.Matcher)
		j.matchers[vh] = m
	}
	var chain []int
	for {
		// Not in the fractions before, but in the next one.
		draws := 0
		i, _ := m.Match(vh, r, func(f mesh.Fraction) bool {
			if f.Numerator == 0 || f.Numerator >= f.Denominator {
				return f.Numerator > 0
			}
			draws++
			return draws > len(chain)
		})
		if i < 0 {
			return vh, chain
		}
		chain = append(chain, i)
		if draws < len(chain) {
			return vh, chain
		}
	}
}

// verify holds a witness against the reference: package head routes it, and in h it
// gets to the virtual host and the routes that the search found.
func (j *judge) verify(w *Witness, h *mesh.HTTP, vh *mesh.VirtualHost, chain []int) error {
	r, outcome := head.ParseRequest(w.Raw())
	if outcome.Kind != head.Route {
		return fmt.Errorf("request %q: %v, where the search takes it to be routed", w.Raw(), outcome)
	}
	got, routes := j.chain(h, &r)
	if got != vh || !slices.Equal(routes, chain) {
		return fmt.Errorf("request %q: the reference has routes %v of %s, the search %v of %s",
			w.Raw(), routes, vhName(got), chain, vhName(vh))
	}
	return nil
}

func vhName(vh *mesh.VirtualHost) string {
	if vh == nil {
		return "no virtual host"
	}
	return vh.Name
}
