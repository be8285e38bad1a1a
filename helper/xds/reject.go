// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kmesh/helper/mesh"
)

// Bounds of the text that a server is sent about what was rejected: it must learn
// the name of every bad resource, and one reason of each.
const (
	maxReason = 512
	maxDetail = 1 << 20 // a server's own limit on requests is 4 MiB
)

// Rejected is the error with which a consumer says which resources it does not
// accept. Everything else in the change is used.
type Rejected []mesh.Verdict

// Error implements error.
func (r Rejected) Error() string {
	var b strings.Builder
	for i, v := range r {
		if i > 0 {
			b.WriteString("; ")
		}
		v.Source = "" // the reader knows it
		b.WriteString(v.Error())
	}
	return b.String()
}

// blame is what is wrong with one response.
type blame struct {
	// named are the verdicts about resources whose names are known.
	named map[string][]mesh.Verdict
	// nameless are the others.
	nameless []mesh.Verdict
	// own are those of named that the transport has found itself.
	own map[string][]mesh.Verdict
	// whole says why nothing of the response was accepted.
	whole string
}

func newBlame() *blame {
	return &blame{named: map[string][]mesh.Verdict{}, own: map[string][]mesh.Verdict{}}
}

// add takes in what the transport has found.
func (b *blame) add(v mesh.Verdict) {
	if v.Resource == "" {
		b.nameless = append(b.nameless, v)
		return
	}
	b.named[v.Resource] = append(b.named[v.Resource], v)
	b.own[v.Resource] = append(b.own[v.Resource], v)
}

// consumer takes in what the consumer has said.
func (b *blame) consumer(err error) {
	if err == nil {
		return
	}
	var list Rejected
	if !errors.As(err, &list) {
		b.whole = err.Error()
		return
	}
	for _, v := range list {
		switch {
		case v.Resource == "":
			b.nameless = append(b.nameless, v)
		case !slices.Contains(b.named[v.Resource], v): // it passes on what it was told
			b.named[v.Resource] = append(b.named[v.Resource], v)
		}
	}
}

// none tells whether all of the response was accepted.
func (b *blame) none() bool {
	return len(b.named) == 0 && len(b.nameless) == 0 && b.whole == ""
}

// reason is what is wrong with one resource, briefly.
func reason(list []mesh.Verdict) string {
	texts := make([]string, 0, len(list))
	for _, v := range list {
		v.Source = ""
		texts = append(texts, v.Error())
	}
	return trim(strings.Join(texts, "; "), maxReason)
}

// String is what the server is told: every bad resource, with a reason.
func (b *blame) String() string {
	var parts []string
	if b.whole != "" {
		parts = append(parts, trim(b.whole, maxReason*8))
	}
	names := make([]string, 0, len(b.named))
	for name := range b.named {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int { return cmp.Compare(x, y) })
	for _, name := range names {
		parts = append(parts, reason(b.named[name]))
	}
	for _, v := range b.nameless {
		parts = append(parts, reason([]mesh.Verdict{v}))
	}
	text := strings.Join(parts, "; ")
	if n := len(names) + len(b.nameless); n > 1 {
		text = fmt.Sprintf("%d resources: %s", n, text)
	}
	return trim(text, maxDetail)
}

// trim keeps a text short, and valid UTF-8.
func trim(msg string, most int) string {
	if len(msg) > most {
		msg = msg[:most]
		return strings.ToValidUTF8(msg, "") + " ..."
	}
	return strings.ToValidUTF8(msg, "?")
}
