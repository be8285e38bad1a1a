// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"fmt"
	"slices"
	"strings"

	"kmesh/helper/automaton"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// tags are facts about a request that exclude each other across dimensions.
type tags uint8

const (
	starPath   tags = 1 << iota // the target is "*"
	notOptions                  // the method is not OPTIONS
	hasQuery
	noHost      // there is no Host: HTTP/1.0
	hasCoding   // Transfer-Encoding
	hasLength   // Content-Length
	anyConflict = starPath | notOptions | hasQuery | noHost | hasCoding | hasLength
)

// exclusive are the pairs that no routed head has (package head: star-target,
// te-in-1.0, te-with-content-length).
var exclusive = []tags{
	starPath | notOptions, starPath | hasQuery, noHost | hasCoding, hasCoding | hasLength,
}

func (t tags) possible() bool {
	for _, pair := range exclusive {
		if t&pair == pair {
			return false
		}
	}
	return true
}

// The kinds of dimension.
type kind uint8

const (
	kindHost kind = iota
	kindPath
	kindMethod
	kindQuery
	kindHeader
)

// dimension is one string of a request.
type dimension struct {
	kind     kind
	name     string // of a parameter or header
	place    int    // among those that routes ask for
	patterns []mesh.StringMatch
	index    map[mesh.StringMatch]int
	// values are the classes that may occur in a request; the first is the one that
	// is taken where it does not matter.
	values []value
}

// value is a class of strings, or the absence of one.
type value struct {
	absent bool
	text   string
	holds  []int // patterns, in order
	tags   tags
}

func newDimension(k kind, name string) *dimension {
	return &dimension{kind: k, name: name, index: map[mesh.StringMatch]int{}}
}

func (d *dimension) String() string {
	switch d.kind {
	case kindHost:
		return "host"
	case kindPath:
		return "path"
	case kindMethod:
		return "method"
	case kindQuery:
		return fmt.Sprintf("query parameter %q", d.name)
	default:
		return fmt.Sprintf("header %q", d.name)
	}
}

// pattern returns the number of a pattern, which may be new.
func (d *dimension) pattern(m mesh.StringMatch) int {
	i, ok := d.index[m]
	if !ok {
		i = len(d.patterns)
		d.index[m] = i
		d.patterns = append(d.patterns, m)
	}
	return i
}

func exact(text string) mesh.StringMatch { return mesh.StringMatch{Value: text} }

// What may stand where, by the rules of package head.
const (
	legalPath   = `/[^ \t#?]*|\*`
	legalMethod = "[-!#$%&'*+.^_`|~0-9A-Za-z]+"
	legalQuery  = `[^ \t#&]*`
	legalField  = `([^ \t](.*[^ \t])?)?`
	legalCoding = `(?i)chunked`
	legalHost   = `([-A-Za-z0-9._]+|\[[0-9A-Fa-f:.]+\])`
	legalPort   = `(:[0-9]{1,5})?`
)

var legalLength = upTo("9223372036854775807")

// upTo is an expression for numbers of as many digits that are not greater, or of
// fewer digits.
func upTo(number string) string {
	alts := []string{number, fmt.Sprintf("[0-9]{1,%d}", len(number)-1)}
	for i, c := range number {
		if c > '0' {
			alts = append(alts, fmt.Sprintf("%s[0-%c][0-9]{%d}", number[:i], c-1, len(number)-1-i))
		}
	}
	return strings.Join(alts, "|")
}

// prefer are the witnesses that a person would choose.
var prefer = map[kind][]string{
	kindHost:   {"example.com"},
	kindPath:   {"/"},
	kindMethod: {"GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"},
}

// divide fills in the values.
func (d *dimension) divide(limits Limits) error {
	absent := value{absent: true}
	within := legalField
	switch d.kind {
	case kindHost:
		// Set by hosts: it depends on all virtual hosts.
		return nil
	case kindPath:
		within = legalPath
		d.pattern(exact("*"))
	case kindMethod:
		within = legalMethod
		d.pattern(exact("OPTIONS"))
		d.pattern(exact("CONNECT"))
	case kindQuery:
		within = legalQuery
		d.values = append(d.values, absent)
		if strings.ContainsAny(d.name, " \t#&=\x7f") || hasCTL(d.name) {
			return nil
		}
	case kindHeader:
		d.values = append(d.values, absent)
		switch {
		case !isToken(d.name):
			return nil
		case d.name == "transfer-encoding":
			within = legalCoding
		case d.name == "content-length":
			within = legalLength
		}
	}
	classes, err := classes(within, d.patterns, prefer[d.kind], limits)
	if err != nil {
		return err
	}
	for _, c := range classes {
		v := value{text: c.Witness, holds: c.Holds}
		switch {
		case d.kind == kindPath && v.text == "*":
			v.tags = starPath
		case d.kind == kindMethod && v.text == "CONNECT":
			continue // a tunnel: it is never matched
		case d.kind == kindMethod && v.text != "OPTIONS":
			v.tags = notOptions
		case d.kind == kindQuery:
			v.tags = hasQuery
		case d.kind == kindHeader && d.name == "transfer-encoding":
			v.tags = hasCoding
		case d.kind == kindHeader && d.name == "content-length":
			v.tags = hasLength
		}
		d.values = append(d.values, v)
	}
	if d.kind == kindMethod || d.kind == kindPath {
		liking := prefer[d.kind]
		slices.SortStableFunc(d.values, func(a, b value) int {
			return rank(liking, a.text) - rank(liking, b.text)
		})
	}
	return nil
}

// rank is the place of a text in a list, its end if it is not there.
func rank(list []string, text string) int {
	if i := slices.Index(list, text); i >= 0 {
		return i
	}
	return len(list)
}

// classes leaves out what does not fit into a head.
func classes(within string, patterns []mesh.StringMatch, prefer []string, limits Limits) ([]automaton.Class, error) {
	out, err := automaton.Classes(within, patterns, prefer, automaton.Budget{
		States: limits.States, Nodes: 4 * limits.States, Time: limits.Time,
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(out, func(c automaton.Class) bool { return len(c.Witness) > head.MaxHead }), nil
}

func hasCTL(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		alnum := '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		return !alnum && (r >= 0x80 || !strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}
