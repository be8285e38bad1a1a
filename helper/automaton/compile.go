// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"kmesh/helper/mesh"
)

// Compile makes the program of a virtual host. It is the same for the same routes.
// A virtual host that costs too much is answered with a *BudgetError; a pattern that is none, with an error that names the route.
func Compile(vh *mesh.VirtualHost, budget Budget) (*Program, error) {
	return newCompiler(vh, budget, false).compile()
}

// compiler is the compilation of one virtual host.
type compiler struct {
	vh       *mesh.VirtualHost // nil: the grammar alone
	budget   Budget
	lim      *limits
	response bool

	b      *builder
	g      *common
	dims   []*dimension
	method *dimension
	path   *dimension
	fields []*dimension
	params []*dimension
	byName map[string]*dimension

	host, length, coding, upgrade *dimension

	emits *lists
	hits  hitFlags
	start state
}

func newCompiler(vh *mesh.VirtualHost, budget Budget, response bool) *compiler {
	budget = budget.withDefaults()
	return &compiler{
		vh: vh, budget: budget, response: response, byName: map[string]*dimension{},
		lim: &limits{work: budget.Work},
	}
}

func unlimited() *limits { return &limits{} }

// add makes a dimension that the routes, or the grammar, ask about.
func (c *compiler) add(key, name string) *dimension {
	d := c.byName[key]
	if d == nil {
		d = newDimension(name)
		d.number = uint8(min(len(c.dims), MaxDimensions))
		c.dims = append(c.dims, d)
		c.byName[key] = d
	}
	return d
}

func (c *compiler) field(name string) *dimension {
	known := c.byName["field "+name] != nil
	d := c.add("field "+name, name)
	if !known {
		c.fields = append(c.fields, d)
	}
	return d
}

func (c *compiler) compile() (*Program, error) {
	c.grammar()
	if c.vh != nil {
		if err := c.collect(); err != nil {
			return nil, err
		}
	}
	if n := len(c.dims); n > MaxDimensions {
		return nil, c.over(c.dims[MaxDimensions].firstRoute(), "headers and query parameters", MaxDimensions)
	}
	c.renumber()
	left := c.budget.States
	for _, d := range c.dims {
		if err := d.build(c.lim, c.budget.Nodes, left); err != nil {
			return nil, c.blame(d, err)
		}
		left -= d.dfa.states()
	}
	if route, ok := c.hits.assign(c.dims); !ok {
		return nil, c.over(route, "infix patterns", MaxHits)
	}
	c.embed()
	p, err := c.encode()
	switch {
	case errors.Is(err, errStates):
		return nil, c.over(c.heaviest(), "states", c.budget.States)
	case errors.Is(err, errBytes):
		return nil, c.over(c.heaviest(), "bytes", c.budget.Bytes)
	}
	return p, err
}

// methodAtoms are the methods that change the grammar, the first atoms of their
// dimension. An atom of the grammar is the first one of every other dimension.
var methodAtoms = []string{"CONNECT", "OPTIONS", "PRI", "HEAD"}

func (c *compiler) grammar() {
	if !c.response {
		c.method, c.path = c.add("method", ":method"), c.add("path", "path")
		for _, m := range methodAtoms {
			c.method.grammarAtom(m)
		}
		c.host = c.field("host")
		c.host.once = "repeated-host"
		c.host.grammarAtom(hostRegex)
		c.upgrade = c.field("upgrade")
		expect := c.field("expect")
		expect.flags[expect.grammarAtom(expectRegex)] = FlagExpect
	}
	c.length = c.field("content-length")
	c.length.once = "repeated-content-length"
	c.length.grammarAtom(lengthRegex)
	c.coding = c.field("transfer-encoding")
	c.coding.once = "repeated-transfer-encoding"
	c.coding.grammarAtom(chunkedRegex)
	connection := c.field("connection")
	connection.flags[connection.grammarAtom(closeRegex)] = FlagClose
	connection.flags[connection.grammarAtom(keepRegex)] = FlagKeepAlive
}

// collect puts the routes' conditions into dimensions.
func (c *compiler) collect() error {
	if n := len(c.vh.Routes); n > MaxRoutes {
		return c.over(MaxRoutes, "routes", MaxRoutes)
	}
	for i, r := range c.vh.Routes {
		if err := c.route(i, &r.Match); err != nil {
			return fmt.Errorf("virtual host %s: route %s: %w", c.vh.Name, c.name(i), err)
		}
	}
	return nil
}

func (c *compiler) route(i int, m *mesh.RouteMatch) error {
	a, err := pathAtom(m.Path)
	if err != nil {
		return err
	}
	c.path.conds = append(c.path.conds, cond{route: i, atom: c.path.atom(a)})
	for _, h := range m.Headers {
		if err := c.header(i, h); err != nil {
			return fmt.Errorf("header %s: %w", h.Name, err)
		}
	}
	for _, q := range m.Query {
		known := c.byName["parameter "+q.Name] != nil
		d := c.add("parameter "+q.Name, q.Name)
		if !known {
			c.params = append(c.params, d)
		}
		cd := cond{route: i, atom: present}
		if !q.Present {
			if err := check(q.Match); err != nil {
				return fmt.Errorf("parameter %s: %w", q.Name, err)
			}
			cd.atom = d.atom(atom{StringMatch: q.Match})
		}
		d.conds = append(d.conds, cd)
	}
	return nil
}

func pathAtom(p mesh.PathMatch) (atom, error) {
	a := atom{StringMatch: mesh.StringMatch{Value: p.Value, IgnoreCase: p.IgnoreCase}}
	switch p.Kind {
	case mesh.PathPrefix:
		a.Kind = mesh.StringPrefix
		if p.Value == "/" {
			a.Value = "" // it matches "*" as well
		}
	case mesh.PathExact:
		a.Kind = mesh.StringExact
	case mesh.PathSegmentPrefix:
		a.Kind, a.segment = mesh.StringPrefix, true
	case mesh.PathRegex:
		a.Kind, a.IgnoreCase = mesh.StringRegex, false
		if err := check(a.StringMatch); err != nil {
			return a, fmt.Errorf("path: %w", err)
		}
	default:
		return a, fmt.Errorf("path: unknown kind %d of match", p.Kind)
	}
	return a, nil
}

func check(m mesh.StringMatch) error {
	if m.Kind > mesh.StringRegex {
		return fmt.Errorf("unknown kind %d of match", m.Kind)
	}
	_, err := parse(m)
	return err
}

func (c *compiler) header(i int, h mesh.HeaderMatch) error {
	var d *dimension
	switch h.Name {
	case ":method":
		d = c.method
	case ":authority":
		d = c.host
	default:
		d = c.field(h.Name)
	}
	cd := cond{route: i, atom: present, invert: h.Invert}
	switch h.Kind {
	case mesh.HeaderPresent:
		cd.missing = h.Invert
	case mesh.HeaderAbsent:
		cd.invert = !h.Invert
		cd.missing = !h.Invert
	case mesh.HeaderString:
		if h.Match.Kind == mesh.StringRegex {
			h.Match.IgnoreCase = false
		}
		if err := check(h.Match); err != nil {
			return err
		}
		cd.atom = d.atom(atom{StringMatch: h.Match})
	case mesh.HeaderRange:
		re := rangeRegex(h.Start, h.End)
		cd.atom = d.atom(atom{StringMatch: mesh.StringMatch{Kind: mesh.StringRegex, Value: re}})
	default:
		return fmt.Errorf("unknown kind %d of header match", h.Kind)
	}
	cd.asEmpty = h.MissingAsEmpty && cd.atom != present
	d.conds = append(d.conds, cd)
	return nil
}

// rank orders the dimensions: those that routes ask about, those that say something
// else at the end of a head, the others.
func (d *dimension) rank() int {
	switch {
	case len(d.conds) > 0:
		return 0
	case len(d.flags) > 0:
		return 1
	}
	return 2
}

func (c *compiler) renumber() {
	slices.SortStableFunc(c.dims, func(a, b *dimension) int { return a.rank() - b.rank() })
	for i, d := range c.dims {
		d.number = uint8(i)
	}
}

// counts are the numbers of dimensions of the first rank, and of the first two.
func (c *compiler) counts() (asked, told int) {
	for _, d := range c.dims {
		switch d.rank() {
		case 0:
			asked++
			told++
		case 1:
			told++
		}
	}
	return asked, told
}

// embed makes the states.
func (c *compiler) embed() {
	b := newBuilder()
	c.b = b
	c.emits = newLists(&c.hits)
	g := &common{lines: b.group(func(s int) [2]int { return [2]int{s, 0} })}
	c.g = g
	b.state(g.lines) // 0: nothing comes after it
	b.fill(0, func(int) ref { return 0 })
	for _, s := range []*state{&g.line, &g.full, &g.ends, &g.skip, &g.other, &g.blank, &g.blankSP, &g.version, &g.query, &g.pass, &g.first, &g.over} {
		*s = b.state(g.lines)
	}
	for _, d := range c.dims {
		switch {
		case d == c.method:
			b.reserve(d, func(s int) int { return s })
		case d == c.path || c.isParam(d):
			b.reserve(d, targetByte)
		default:
			b.reserve(d, valueByte)
		}
	}
	b.lineStates(g, !c.response)
	b.nameStates(c.sendable(), g)
	for _, d := range c.fields {
		switch d {
		case c.host:
			b.embedStrict(d, g, c.emits, strict{rule: "host", valid: 0, span: SpanHost})
		case c.length:
			b.embedStrict(d, g, c.emits, strict{rule: "content-length", valid: 0, ops: opDigit, span: SpanNone})
		case c.coding:
			b.embedStrict(d, g, c.emits, strict{rule: "transfer-encoding", valid: 0, span: SpanNone, noBlankAfter: true})
		default:
			b.embedValue(d, g, c.emits)
		}
	}
	if c.response {
		b.emptyRows(g.full, g.version, g.query, g.pass)
		c.start = b.statusLine(g)
		return
	}
	b.versionStates(g)
	b.embedQuery(c.params, g, c.emits)
	b.embedPath(c.path, g, c.emits)
	for _, d := range c.params {
		b.embedParameter(d, g, c.emits)
	}
	c.start = b.requestLine(c.method, c.path, 0, 1, 2, 3, g, c.emits)
}

// emptyRows fills states that nothing leads to.
func (b *builder) emptyRows(states ...state) {
	for _, s := range states {
		b.rows[s] = b.rows[0]
	}
}

func (c *compiler) isParam(d *dimension) bool {
	for _, p := range c.params {
		if p == d {
			return true
		}
	}
	return false
}

// sendable are the fields whose names can be sent at all.
func (c *compiler) sendable() []*dimension {
	var out []*dimension
	for _, d := range c.fields {
		if isLowerToken(d.name) {
			out = append(out, d)
		}
	}
	return out
}

func (c *compiler) routes() int {
	if c.vh == nil {
		return 0
	}
	return len(c.vh.Routes)
}

func (c *compiler) name(route int) string {
	if route < 0 || route >= c.routes() {
		return "of the grammar"
	}
	if n := c.vh.Routes[route].Name; n != "" {
		return n
	}
	return strconv.Itoa(route)
}

func (c *compiler) over(route int, what string, limit int) error {
	e := &BudgetError{Route: c.name(route), What: what, Limit: strconv.Itoa(limit)}
	if c.vh != nil {
		e.VirtualHost = c.vh.Name
	}
	return e
}
