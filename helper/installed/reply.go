// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"fmt"
	"strings"

	"kmesh/bpf"
	"kmesh/helper/head"
)

// reply says what a prepared answer is.
func (t *Tables) reply(id uint32, from *head.Request) (string, error) {
	r, ok, err := lookup[uint32, bpf.Reply](t.rt.Replies, id)
	switch {
	case err != nil:
		return "", err
	case !ok && id < bpf.ReplyFirst:
		return fmt.Sprintf("answered %d", id), nil
	case !ok:
		return fmt.Sprintf("answered 503: its reply %d is not there", id), nil
	}
	text, body := render(&r, from)
	for line := range strings.SplitSeq(text, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "location") {
			return fmt.Sprintf("answered %d to %s", r.Status, strings.TrimSpace(value)), nil
		}
	}
	if id < bpf.ReplyFirst {
		return fmt.Sprintf("answered %d", r.Status), nil
	}
	return fmt.Sprintf("answered %d with %d bytes", r.Status, len(body)), nil
}

// render puts the parts together, as the program does.
func render(r *bpf.Reply, from *head.Request) (text, body string) {
	for _, p := range r.Parts[:min(int(r.N_parts), len(r.Parts))] {
		first := min(int(p.From), len(r.Text))
		piece := string(r.Text[first:min(first+int(p.Len), len(r.Text))])
		switch p.Kind {
		case bpf.PartText:
			text += piece
		case bpf.PartBody:
			body += piece
		case bpf.PartHost:
			text += from.Authority[:len(from.Host)]
		case bpf.PartAuthority:
			text += from.Authority
		case bpf.PartNot80:
			text += strings.TrimSuffix(from.Authority, ":80")
		case bpf.PartPath:
			text += from.Path[min(int(p.From), len(from.Path)):]
		case bpf.PartQuery:
			if from.HasQuery {
				text += "?" + from.Query
			}
		}
	}
	return text, body
}
