// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// reply mirrors a prepared answer. It never changes under its id: the program
// repeats an answer that is lost, and what it repeats must be the same.
type reply struct {
	status uint16
	n      int
	parts  [bpf.MaxReplyParts]bpf.Part
	text   string
}

// programStatuses are what the programs answer on their own account.
var programStatuses = []uint16{400, 404, 408, 413, 421, 431, 500, 501, 502, 503, 504, 505}

// isAlways tells whether a reply is one of those that the programs need whatever the mesh is.
func isAlways(id uint32) bool {
	return id == bpf.ReplyOverflow || id < bpf.ReplyFirst && slices.Contains(programStatuses, uint16(id))
}

// closing are the statuses after which the programs end the connection, because it
// is no longer known where the next request begins.
var closing = []uint16{400, 408, 431, 505}

// statusReply is the plain answer with a status.
func statusReply(status uint16) reply {
	body := http.StatusText(int(status))
	if body == "" {
		body = "status " + strconv.Itoa(int(status))
	}
	fields := ""
	if slices.Contains(closing, status) {
		fields = "connection: close\r\n"
	}
	b := newReply(status)
	b.body(fields, body+"\n")
	return b.done()
}

// overflowReply is the answer where a cluster allows no further connection: Envoy's own.
func overflowReply() reply {
	b := newReply(http.StatusServiceUnavailable)
	b.body("x-envoy-overloaded: true\r\n", "upstream connect error or disconnect/reset before headers. reset reason: overflow")
	return b.done()
}

// directReply is the answer of a direct response.
func directReply(d *mesh.DirectResponse) (reply, error) {
	b := newReply(d.Status)
	b.body("", string(d.Body))
	return b.checked()
}

// redirectReply is the answer of a redirect. It says what explain.Location says for
// every request that the match lets through; a test holds the two together.
func redirectReply(rd *mesh.Redirect, match *mesh.PathMatch) (reply, error) {
	b := newReply(rd.Status)
	scheme := rd.Scheme
	if scheme == "" {
		scheme = "http"
	}
	b.add("location: " + scheme + "://" + rd.Host)
	switch {
	case rd.Port != 0:
		if rd.Host == "" {
			b.part(bpf.PartHost, 0)
		}
		b.add(":" + strconv.Itoa(int(rd.Port)))
	case rd.Host != "":
	case scheme != "http":
		b.part(bpf.PartNot80, 0)
	default:
		b.part(bpf.PartAuthority, 0)
	}
	b.path(rd, match)
	if !rd.StripQuery && !strings.Contains(rd.Path, "?") {
		b.part(bpf.PartQuery, 0)
	}
	b.add("\r\ncontent-length: 0\r\n\r\n")
	return b.checked()
}

// path adds the path of a Location. A request's own path is written as "/" and
// what comes behind it: the path may be none, and "*" is none.
func (b *replyBuilder) path(rd *mesh.Redirect, match *mesh.PathMatch) {
	fixed, rest := rd.Path, -1 // the request's path from rest on, unless negative
	switch {
	case rd.Path != "":
	case rd.Prefix != "":
		fixed = rd.Prefix
		if match.Kind != mesh.PathRegex {
			rest = len(match.Value)
		}
	default:
		rest = 0
	}
	if fixed != "" && !strings.HasPrefix(fixed, "/") {
		fixed = "/" + fixed
	}
	if rest == 0 {
		fixed, rest = fixed+"/", 1
	}
	b.add(fixed)
	if rest > 0 && rest < 1<<16 {
		b.part(bpf.PartPath, uint16(rest))
	}
}

// replyBuilder makes a reply of parts; texts that follow one another are one part.
type replyBuilder struct {
	reply
	text strings.Builder
	from int // of the text that is no part yet
	over bool
}

func newReply(status uint16) *replyBuilder {
	b := &replyBuilder{reply: reply{status: status}}
	b.add(fmt.Sprintf("HTTP/1.1 %d %s\r\n", status, http.StatusText(int(status))))
	return b
}

func (b *replyBuilder) add(text string) { b.text.WriteString(text) }

// part ends the text before it and adds a part of the request.
func (b *replyBuilder) part(kind, from uint16) {
	b.flush(bpf.PartText)
	b.put(bpf.Part{Kind: kind, From: from})
}

func (b *replyBuilder) put(p bpf.Part) {
	if b.n == len(b.parts) {
		b.over = true
		return
	}
	b.parts[b.n] = p
	b.n++
}

func (b *replyBuilder) flush(kind uint16) {
	n := b.text.Len() - b.from
	if b.text.Len() > bpf.MaxReplyText {
		b.over = true
		return
	}
	if n > 0 {
		b.put(bpf.Part{Kind: kind, From: uint16(b.from), Len: uint16(n)})
		b.from = b.text.Len()
	}
}

// body ends the head and adds a body, which answers to HEAD leave out. Some
// statuses have neither body nor length (RFC 9110, sections 8.6 and 15.4.5).
func (b *replyBuilder) body(fields, body string) {
	b.add(fields)
	if b.status == http.StatusNoContent || b.status == http.StatusNotModified {
		b.add("\r\n")
		return
	}
	b.add("content-length: " + strconv.Itoa(len(body)) + "\r\n")
	if body != "" {
		b.add("content-type: text/plain\r\n")
	}
	b.add("\r\n")
	b.flush(bpf.PartText)
	b.add(body)
	b.flush(bpf.PartBody)
}

func (b *replyBuilder) done() reply {
	b.flush(bpf.PartText)
	b.reply.text = b.text.String()
	return b.reply
}

func (b *replyBuilder) checked() (reply, error) {
	r := b.done()
	if b.over {
		return r, fmt.Errorf("its answer has %d bytes, and %d are possible", b.text.Len(), bpf.MaxReplyText)
	}
	return r, nil
}

// value is what the map holds.
func (r reply) value() *bpf.Reply {
	v := &bpf.Reply{Status: r.status, N_parts: uint16(r.n), Parts: r.parts}
	copy(v.Text[:], r.text)
	return v
}

// replyOf is the inverse of value.
func replyOf(v *bpf.Reply) (reply, error) {
	r := reply{status: v.Status, n: int(v.N_parts), parts: v.Parts}
	if r.n > len(r.parts) {
		return r, fmt.Errorf("%d parts", r.n)
	}
	end := 0
	for _, p := range r.parts[:r.n] {
		if p.Kind == bpf.PartText || p.Kind == bpf.PartBody {
			end = max(end, int(p.From)+int(p.Len))
		}
	}
	if end > len(v.Text) {
		return r, fmt.Errorf("text of %d bytes", end)
	}
	r.text = string(v.Text[:end])
	return r, nil
}
