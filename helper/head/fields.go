// SPDX-License-Identifier: Apache-2.0

package head

import (
	"math"
	"strings"
)

// fields is what the lines of a head say about the message.
type fields struct {
	all           []Field
	host          string
	contentLength int64 // -1: none
	chunked       bool
	upgrade       bool
	expect100     bool
	keepAlive     bool
}

// fields reads the lines, and the empty one that ends the head.
func (p *parser) fields(proto string) fields {
	f := fields{contentLength: -1}
	seen := map[string]bool{}
	var closing, keeping bool
	for {
		name, ok := p.name(len(f.all))
		if !ok {
			break
		}
		key := strings.ToLower(name)
		check := valueCheck(anyValue{})
		switch key {
		case "host":
			if !p.response {
				p.once(seen, key, "repeated-host")
				check = &hostValue{state: hostStart}
			}
		case "content-length":
			p.once(seen, key, "repeated-content-length")
			check = &lengthValue{}
		case "transfer-encoding":
			p.once(seen, key, "repeated-transfer-encoding")
			check = &codingValue{}
		}
		value := p.value(check)
		f.all = append(f.all, Field{Name: name, Value: value})
		switch key {
		case "host":
			f.host = value
		case "content-length":
			f.contentLength = check.(*lengthValue).n
		case "transfer-encoding":
			f.chunked = true
		case "upgrade":
			f.upgrade = true
		case "expect":
			f.expect100 = f.expect100 || equalFold(value, "100-continue")
		case "connection":
			closing = closing || hasOption(value, "close")
			keeping = keeping || hasOption(value, "keep-alive")
		}
	}
	f.keepAlive = !closing && (proto == "HTTP/1.1" || keeping)
	return f
}

// name reads a field's name and its colon; false at the end of the head.
func (p *parser) name(read int) (string, bool) {
	start := p.i
	switch c := p.next(); {
	case c == '\r':
		p.lf()
		return "", false
	case c == '\n':
		p.fire("bare-lf")
	case isBlank(c):
		p.fire("obs-fold")
	case !isTchar(c):
		p.fire("field-name")
	case read == MaxFields && !p.response:
		p.fire("too-many-fields")
	}
	for {
		switch c := p.next(); {
		case c == ':':
			return string(p.b[start : p.i-1]), true
		case isBlank(c):
			p.fire("blank-before-colon")
		case !isTchar(c):
			p.fire("field-name")
		}
	}
}

// once fires the rule if key was seen before.
func (p *parser) once(seen map[string]bool, key, rule string) {
	if seen[key] {
		p.fire(rule)
	}
	seen[key] = true
}

// value reads a field's value and the end of its line.
func (p *parser) value(check valueCheck) string {
	start := p.i
	for {
		c := p.next()
		switch {
		case c == '\n':
			p.fire("bare-lf")
		case isCTL(c) && c != '\r' && c != '\t':
			p.fire("field-value-byte")
		}
		if rule := check.next(c); rule != "" {
			p.fire(rule)
		}
		if c == '\r' {
			p.lf()
			return strings.Trim(string(p.b[start:p.i-2]), " \t")
		}
	}
}

// valueCheck is what a field asks of its value's bytes.
type valueCheck interface {
	// next takes a byte, last of all the CR that ends the value, and returns the
	// rule that it breaks, if any.
	next(c byte) (rule string)
}

// anyValue asks nothing.
type anyValue struct{}

func (anyValue) next(byte) string { return "" }

// hostValue asks for a host between blanks.
type hostValue struct {
	state hostState
	over  bool // a blank or the CR came after the host
}

func (v *hostValue) next(c byte) string {
	switch {
	case isBlank(c) && v.state == hostStart:
		return ""
	case isBlank(c) || c == '\r':
		v.over = true
		if !v.state.whole() {
			return "host"
		}
		return ""
	}
	v.state = v.state.next(c)
	if v.over || v.state == hostBad {
		return "host"
	}
	return ""
}

// lengthValue asks for a number between blanks.
type lengthValue struct {
	n      int64
	digits int
	over   bool
}

func (v *lengthValue) next(c byte) string {
	const rule, maxDigits = "content-length", 19
	switch {
	case isBlank(c):
		v.over = v.digits > 0
		return ""
	case c == '\r' && v.digits > 0:
		return ""
	case c < '0' || c > '9' || v.over || v.digits == maxDigits:
		return rule
	}
	d := int64(c - '0')
	if v.n > (math.MaxInt64-d)/10 {
		return rule
	}
	v.n, v.digits = v.n*10+d, v.digits+1
	return ""
}

// codingValue asks for "chunked", after spaces, and nothing else.
type codingValue struct{ read int }

func (v *codingValue) next(c byte) string {
	const want = "chunked\r"
	switch {
	case c == ' ' && v.read == 0:
		return ""
	case lower(c) != want[v.read]:
		return "transfer-encoding"
	}
	v.read++
	return ""
}

// hasOption says whether a list has this element.
func hasOption(list, option string) bool {
	for _, element := range strings.Split(list, ",") {
		if equalFold(strings.Trim(element, " \t"), option) {
			return true
		}
	}
	return false
}
