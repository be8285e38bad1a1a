// SPDX-License-Identifier: Apache-2.0

package automaton

// Most of a table are the ends of long names, in which one byte follows another: each
// would be a row, most of a cache line, that is read once. So where such an end begins
// the next bytes are compared at once (opAhead), and only if they differ read one by
// one. The states are there all the same: what is decided does not depend on it.

// textLength is how many bytes are compared at once.
const textLength = 8

// ahead is a run of bytes, and the state behind it.
type ahead struct {
	text [textLength]byte
	n    uint8
	to   int32
}

// only returns the byte, and the state after it, that is the only way on from s that
// differs from where all other bytes lead.
func (d *dimension) only(s int32) (c int, to int32, ok bool) {
	// Of three columns two agree, if all but one do.
	a, b, e := d.to(s, '!'), d.to(s, '~'), d.to(s, '$')
	rest := a
	if a != b && a != e {
		rest = b
	}
	c = -1
	for x := 0x21; x < 0x100; x++ {
		if x == 0x7f {
			continue
		}
		if t := d.to(s, x); t != rest {
			if c >= 0 {
				return 0, 0, false
			}
			c, to = x, t
		}
	}
	return c, to, c >= 0 && c < 0x7f && targetByte(c) == byteOther
}

// runs finds the states of the dimension with which a run of at least four bytes
// begins. After a run of textLength bytes another one begins one byte later.
func (d *dimension) runs() map[int32]ahead {
	const least = 4
	type way struct {
		c  int
		to int32
	}
	n := d.dfa.states()
	next := make([]way, n)
	inner := make([]bool, n) // reached by the only way from another state
	for s := range n {
		next[s].c = -1
		if c, to, ok := d.only(int32(s)); ok && to != int32(s) && len(d.dfa.sets[d.dfa.hits[to]]) == 0 && !d.even(to) {
			next[s] = way{c, to}
			inner[to] = true
		}
	}
	out := map[int32]ahead{}
	for s := range n {
		if inner[s] {
			continue
		}
		for at := int32(s); ; {
			run := ahead{to: at}
			for run.n < textLength && next[run.to].c >= 0 {
				run.text[run.n] = byte(next[run.to].c)
				run.n++
				run.to = next[run.to].to
			}
			if _, known := out[at]; known || run.n < least {
				break
			}
			out[at] = run
			if next[run.to].c < 0 {
				break
			}
			at = next[run.to].to
		}
	}
	return out
}
