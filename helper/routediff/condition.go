// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"fmt"
	"regexp"
	"slices"

	"kmesh/helper/automaton"
	"kmesh/helper/mesh"
)

// condition is what a route asks of one dimension.
type condition struct {
	dim *dimension
	// The value holds any of these patterns, or none if inverted.
	patterns []int
	invert   bool
	// The answer where the dimension is absent.
	absent bool
	text   string // for people
}

func (c *condition) holds(v *value) bool {
	if v.absent {
		return c.absent
	}
	any := slices.ContainsFunc(c.patterns, func(p int) bool {
		_, ok := slices.BinarySearch(v.holds, p)
		return ok
	})
	return any != c.invert
}

// key tells conditions apart.
func (c *condition) key() string {
	return fmt.Sprint(c.patterns, c.invert, c.absent)
}

// dimensions are those of some routes, by kind and name.
type dimensions struct {
	host *dimension
	byID map[string]*dimension
}

func (ds *dimensions) get(k kind, name string) *dimension {
	if k == kindHost {
		return ds.host
	}
	id := string(rune('0'+k)) + name
	d, ok := ds.byID[id]
	if !ok {
		d = newDimension(k, name)
		d.place = len(ds.byID)
		ds.byID[id] = d
	}
	return d
}

// sorted returns them in the order of the search: what divides the routes most comes
// first, then headers and parameters as routes ask for them, so that those of one
// route are decided together.
func (ds *dimensions) sorted() []*dimension {
	ds.get(kindPath, "")
	ds.get(kindMethod, "")
	out := []*dimension{ds.host}
	for _, d := range ds.byID {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b *dimension) int {
		ka, kb := min(a.kind, kindQuery), min(b.kind, kindQuery)
		if ka != kb {
			return int(ka) - int(kb)
		}
		return a.place - b.place
	})
	return out
}

// conditions are all that a route asks.
func (ds *dimensions) conditions(m *mesh.RouteMatch) ([]condition, error) {
	var out []condition
	if c, ok := ds.path(m.Path); ok {
		out = append(out, c)
	}
	for _, q := range m.Query {
		d := ds.get(kindQuery, q.Name)
		if q.Present {
			out = append(out, condition{dim: d, invert: true, text: fmt.Sprintf("%v is there", d)})
			continue
		}
		out = append(out, condition{dim: d, patterns: []int{d.pattern(q.Match)}, text: fmt.Sprintf("%v %s", d, describe(q.Match))})
	}
	for i := range m.Headers {
		c, err := ds.header(&m.Headers[i])
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// path is false if every path will do.
func (ds *dimensions) path(m mesh.PathMatch) (condition, bool) {
	c := condition{dim: ds.get(kindPath, "")}
	s := mesh.StringMatch{Value: m.Value, IgnoreCase: m.IgnoreCase}
	switch m.Kind {
	case mesh.PathPrefix:
		if m.Value == "" || m.Value == "/" {
			return c, false
		}
		s.Kind = mesh.StringPrefix
	case mesh.PathRegex:
		s.Kind, s.IgnoreCase = mesh.StringRegex, false
	case mesh.PathSegmentPrefix:
		below := mesh.StringMatch{Kind: mesh.StringPrefix, Value: m.Value + "/", IgnoreCase: m.IgnoreCase}
		c.patterns = append(c.patterns, c.dim.pattern(below))
	}
	c.patterns = append(c.patterns, c.dim.pattern(s))
	c.text = "path " + describe(s)
	if m.Kind == mesh.PathSegmentPrefix {
		c.text = fmt.Sprintf("path %q or below", m.Value)
	}
	return c, true
}

func (ds *dimensions) header(m *mesh.HeaderMatch) (condition, error) {
	var d *dimension
	switch m.Name {
	case ":method":
		d = ds.get(kindMethod, "")
	case ":authority", "host":
		d = ds.get(kindHost, "")
	default:
		d = ds.get(kindHeader, m.Name)
	}
	c := condition{dim: d, invert: m.Invert}
	not := map[bool]string{true: "not "}[m.Invert]
	switch m.Kind {
	case mesh.HeaderPresent, mesh.HeaderAbsent:
		present := (m.Kind == mesh.HeaderPresent) != m.Invert
		c.invert, c.absent = present, !present
		c.text = fmt.Sprintf("%v is there", d)
		if !present {
			c.text = fmt.Sprintf("%v is not there", d)
		}
		return c, nil
	case mesh.HeaderRange:
		s := automaton.Range(m.Start, m.End)
		c.patterns = []int{d.pattern(s)}
		// The empty string is no integer.
		c.absent = m.MissingAsEmpty && m.Invert
		c.text = fmt.Sprintf("%v %sin [%d, %d)", d, not, m.Start, m.End)
		return c, nil
	}
	c.patterns = []int{d.pattern(m.Match)}
	c.text = fmt.Sprintf("%v %s%s", d, not, describe(m.Match))
	if m.MissingAsEmpty {
		empty, err := matchesEmpty(m.Match)
		if err != nil {
			return c, err
		}
		c.absent = empty != m.Invert
	}
	return c, nil
}

// matchesEmpty asks whether a pattern matches the empty string.
func matchesEmpty(m mesh.StringMatch) (bool, error) {
	if m.Kind != mesh.StringRegex {
		return m.Value == "", nil
	}
	re, err := regexp.Compile(`^(?:` + m.Value + `)$`)
	if err != nil {
		return false, fmt.Errorf("regex %q: %w", m.Value, err)
	}
	return re.MatchString(""), nil
}

// describe says for people what a pattern asks.
func describe(m mesh.StringMatch) string {
	word := [...]string{
		mesh.StringExact: "is", mesh.StringPrefix: "begins with", mesh.StringSuffix: "ends with",
		mesh.StringContains: "contains", mesh.StringRegex: "matches",
	}[m.Kind]
	if m.IgnoreCase && m.Kind != mesh.StringRegex {
		return fmt.Sprintf("%s %q in any case", word, m.Value)
	}
	return fmt.Sprintf("%s %q", word, m.Value)
}
