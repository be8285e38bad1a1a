// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"unicode"
	"unicode/utf8"
)

// join is a symbol beside the 256 bytes: the "," between two fields of one name. A
// set that holds "," holds it too; only an expression of the grammar may tell them
// apart.
const join = 256

// symbolCount is that of the bytes and join.
const symbolCount = 257

// byteSet is a set of symbols.
type byteSet [5]uint64

func (s *byteSet) add(lo, hi int) {
	for c := lo; c <= hi; c++ {
		s[c/64] |= 1 << (c % 64)
	}
	if lo <= ',' && ',' <= hi {
		s[join/64] |= 1 << (join % 64)
	}
}

func (s *byteSet) has(c int) bool { return s[c/64]&(1<<(c%64)) != 0 }

// may is what may occur in a target or a value: tab, and everything from blank on
// but DEL. Sets are cut down to it, so that "." is the same as anything.
var may = func() (s byteSet) {
	s.add('\t', '\t')
	s.add(' ', 0x7e)
	s.add(0x80, join)
	return s
}()

var anything = may

func bytesFrom(lo, hi int) (s byteSet) {
	s.add(lo, hi)
	for i := range s {
		s[i] &= may[i]
	}
	return s
}

func oneByte(c byte, fold bool) (s byteSet) {
	s.add(int(c), int(c))
	if fold && 'a' <= c|0x20 && c|0x20 <= 'z' {
		s.add(int(c^0x20), int(c^0x20))
	}
	return s
}

// runes is a sorted list of first and last runes.
type runes []rune

// oneRune is r, and its other cases if fold.
func oneRune(r rune, fold bool) runes {
	out := runes{r, r}
	if fold {
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			out = append(out, f, f)
		}
	}
	return out
}

// ascii is the part of one byte.
func (r runes) ascii() (s byteSet) {
	for i := 0; i < len(r); i += 2 {
		if r[i] < utf8.RuneSelf {
			s.add(int(r[i]), int(min(r[i+1], utf8.RuneSelf-1)))
		}
	}
	for i := range s {
		s[i] &= may[i]
	}
	return s
}

// allHigh tells whether every rune of more than one byte is in the list.
func (r runes) allHigh() bool {
	for i := 0; i < len(r); i += 2 {
		if r[i] <= utf8.RuneSelf && r[i+1] == unicode.MaxRune {
			return true
		}
	}
	return false
}

// span is bounds of one byte.
type span struct{ lo, hi byte }

// sequences calls f with the bounds of the bytes of all runes of the list that have
// more than one byte.
func (r runes) sequences(f func([]span)) {
	limits := []rune{0x7f, 0x7ff, 0xd7ff, 0xdfff, 0xffff, unicode.MaxRune}
	for i := 0; i < len(r); i += 2 {
		for k := 1; k < len(limits); k++ {
			if limits[k] == 0xdfff {
				continue // surrogates have no bytes
			}
			if lo, hi := max(r[i], limits[k-1]+1), min(r[i+1], limits[k]); lo <= hi {
				sequencesOf(lo, hi, f)
			}
		}
	}
}

// sequencesOf does so for runes from lo to hi of the same length. It divides them
// until each byte ranges independently of the others.
func sequencesOf(lo, hi rune, f func([]span)) {
	n := utf8.RuneLen(lo)
	for i := 1; i < n; i++ {
		m := rune(1)<<(6*i) - 1
		if lo&^m == hi&^m {
			continue
		}
		if lo&m != 0 {
			sequencesOf(lo, lo|m, f)
			sequencesOf((lo|m)+1, hi, f)
			return
		}
		if hi&m != m {
			sequencesOf(lo, (hi&^m)-1, f)
			sequencesOf(hi&^m, hi, f)
			return
		}
	}
	a, b := utf8.AppendRune(nil, lo), utf8.AppendRune(nil, hi)
	out := make([]span, n)
	for i := range out {
		out[i] = span{a[i], b[i]}
	}
	f(out)
}

// isWord tells whether a symbol counts for \b.
func isWord(c int) bool {
	return c == '_' || '0' <= c && c <= '9' || c < utf8.RuneSelf && 'a' <= c|0x20 && c|0x20 <= 'z'
}
