// SPDX-License-Identifier: Apache-2.0

package automaton

// ref is an entry of a state's row before the table is laid out: a state, or the
// complement of an action's number.
type ref int32

type state int32

// What an action does, in this order.
const (
	opSave    = 1 << iota // the dimension stops in the state that was left
	opSpan                // span ends before this byte
	opDim                 // dim is the dimension from now on
	opStart               // a span begins with this byte
	opAfter               // a span begins after this byte
	opHigh                // the byte is above 0x7f: look whether it is valid UTF-8
	opEmit                // the hits of a list are set
	opDigit               // the byte is a digit of the length
	opStatus              // the byte is a digit of the status
	opEmpty               // the query parameter dim has no value; the first one counts
	opOnce                // if dim was read before, rule is broken
	opFirst               // if dim was read before, go to alt instead
	opEnter               // base is where dim begins, or goes on over a join
	opBase                // go to base
	opRedo                // the byte is read again
	opField               // a line was read; after the last that is allowed go to alt
	opSkip                // skip what a value's state does not tell apart
	opHop                 // what a target's state does not
	opRun                 // and letters, digits, "-" and "."
	opAhead               // if text follows go to alt at once
	opVersion             // if "HTTP/1.1" and CR LF follow go to alt at once
	opStop                // rule decides
	opEnd                 // the head is whole
)

// action is what happens on a transition that is more than a new state.
type action struct {
	ops   uint32
	next  state
	alt   state
	emit  uint16 // number of a list of hits
	flags uint16 // set in the machine
	dim   uint8
	rule  uint8
	span  uint8
	text  [textLength]byte
	bytes uint8 // of text
}

// group is states that share the classes of bytes.
type group struct {
	id   int
	pre  [symbolCount]int16 // classes before columns are merged
	rep  []int              // a symbol of each
	rows []state

	class   [symbolCount]uint8
	columns []int16 // the pre-class of each class
}

type builder struct {
	groups  []*group
	of      []*group // of a state
	rows    [][]ref  // of a state
	actions []action
	numbers map[action]ref
}

func newBuilder() *builder { return &builder{numbers: map[action]ref{}} }

// group makes a group that tells bytes apart by their keys.
func (b *builder) group(key func(c int) [2]int) *group {
	g := &group{id: len(b.groups)}
	ids := map[[2]int]int16{}
	for c := range symbolCount {
		k := key(c)
		id, ok := ids[k]
		if !ok {
			id = int16(len(ids))
			ids[k] = id
			g.rep = append(g.rep, c)
		}
		g.pre[c] = id
	}
	b.groups = append(b.groups, g)
	return g
}

func (b *builder) state(g *group) state {
	s := state(len(b.rows))
	b.rows = append(b.rows, nil)
	b.of = append(b.of, g)
	g.rows = append(g.rows, s)
	return s
}

// fill sets a state's row: f is asked once for each class, with one of its bytes.
func (b *builder) fill(s state, f func(c int) ref) {
	g := b.of[s]
	row := make([]ref, len(g.rep))
	for i, c := range g.rep {
		row[i] = f(c)
	}
	b.rows[s] = row
}

func (b *builder) at(s state, c int) ref { return b.rows[s][b.of[s].pre[c]] }

func (b *builder) do(a action) ref {
	r, ok := b.numbers[a]
	if !ok {
		r = ^ref(len(b.actions))
		b.actions = append(b.actions, a)
		b.numbers[a] = r
	}
	return r
}

func (b *builder) stop(id string) ref { return b.do(action{ops: opStop, rule: rule(id)}) }

// mergeColumns gives bytes that no state of a group tells apart one class.
func (b *builder) mergeColumns(g *group) {
	n := len(g.rep)
	part := make([]int16, n)
	count := 1
	for _, s := range g.rows {
		if count == n {
			break
		}
		ids := make(map[[2]int32]int16, count)
		next := make([]int16, n)
		row := b.rows[s]
		for p := range n {
			k := [2]int32{int32(part[p]), int32(row[p])}
			id, ok := ids[k]
			if !ok {
				id = int16(len(ids))
				ids[k] = id
			}
			next[p] = id
		}
		part, count = next, len(ids)
	}
	g.columns = make([]int16, 0, count)
	for p := range n {
		if int(part[p]) == len(g.columns) {
			g.columns = append(g.columns, int16(p))
		}
	}
	for c := range symbolCount {
		g.class[c] = uint8(part[g.pre[c]])
	}
}

func isTchar(c int) bool {
	switch {
	case '0' <= c && c <= '9', 'a' <= c|0x20 && c|0x20 <= 'z':
		return true
	}
	for _, t := range []byte("!#$%&'*+-.^_`|~") {
		if c == int(t) {
			return true
		}
	}
	return false
}

// isPlain tells whether opRun skips a symbol.
func isPlain(c int) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.'
}

func isCTL(c int) bool   { return c < 0x20 || c == 0x7f }
func isBlank(c int) bool { return c == ' ' || c == '\t' }

func lower(c int) int {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}
