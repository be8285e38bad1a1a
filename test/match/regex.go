// SPDX-License-Identifier: Apache-2.0

package match

import (
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode"
)

// pathRegex is an expression for paths: what people write, and odd ones.
func (g *Generator) pathRegex() string {
	switch g.r.IntN(10) {
	case 0:
		return "/" + g.regex(g.word()) + "/" + g.regex(g.word())
	case 1:
		return ".*/" + regexp.QuoteMeta(g.word()) + "/.*"
	case 2:
		return ".*" + regexp.QuoteMeta(g.word())
	case 3:
		return regexp.QuoteMeta(g.segments()) + "(/.*)?"
	case 4:
		return "/[^/]+" + regexp.QuoteMeta(g.segments())
	case 5:
		return "(?i)" + regexp.QuoteMeta(g.segments())
	case 6:
		return regexp.QuoteMeta(g.segments()) + "|" + regexp.QuoteMeta(g.segments())
	case 7:
		return "/" + pick(g, "[0-9]+", `\d{1,2}`, "[a-b]{2}", `\w*`, "[^b]*", "a?b?", "(a|ab)(b|1)*", `\S+`) + g.segments()
	case 8:
		return "^" + regexp.QuoteMeta(g.segments()) + "$"
	default:
		return "/" + g.regex(g.word())
	}
}

// regex is an expression that has something to do with the word.
func (g *Generator) regex(word string) string {
	quoted := regexp.QuoteMeta(word)
	switch g.r.IntN(14) {
	case 0:
		return ".*" + quoted + ".*"
	case 1:
		return ".*" + quoted
	case 2:
		return quoted + ".*"
	case 3:
		return quoted + ".+"
	case 4:
		return "(?i)" + quoted
	case 5:
		return "(" + quoted + "|" + regexp.QuoteMeta(g.word()) + ")" + pick(g, "", "*", "+", "?", "{2}")
	case 6:
		return pick(g, "[ab]", "[^a]", ".", `\d`, "[a-c1-3]", `[^,]`, `\W`) + pick(g, "", "*", "+", "?", "{1,2}")
	case 7:
		return g.tree(3)
	case 8:
		return "^" + quoted + "$"
	case 9:
		return quoted + "," + regexp.QuoteMeta(g.word())
	case 10:
		return `.*\b` + pick(g, "a", "b1", "ab") + `\b.*`
	case 11:
		return pick(g, `(?s).`, `(?U)a*`, `\x61b`, `\pL+`, `[[:alpha:]]*`, `(?i)[^b]+`, `a|`, ``)
	default:
		return quoted
	}
}

// tree is an expression of random shape.
func (g *Generator) tree(depth int) string {
	if depth == 0 || g.oneIn(4) {
		return pick(g, "a", "b", "1", ".", "[ab]", "-", ",")
	}
	switch g.r.IntN(4) {
	case 0:
		return g.tree(depth-1) + g.tree(depth-1)
	case 1:
		return "(?:" + g.tree(depth-1) + "|" + g.tree(depth-1) + ")"
	default:
		return "(?:" + g.tree(depth-1) + ")" + pick(g, "*", "+", "?", "{0,2}", "*?")
	}
}

// sample is a string that the expression matches, or nearly.
func (g *Generator) sample(expr string) string {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		panic("match: generated expression " + expr + ": " + err.Error())
	}
	var b strings.Builder
	g.sampleTree(&b, re)
	return b.String()
}

func (g *Generator) sampleTree(b *strings.Builder, re *syntax.Regexp) {
	few := func(least, most int) {
		if most < 0 || most > least+2 {
			most = least + 2
		}
		for range least + g.r.IntN(most-least+1) {
			g.sampleTree(b, re.Sub[0])
		}
	}
	switch re.Op {
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			if re.Flags&syntax.FoldCase != 0 && g.oneIn(2) {
				r = unicode.SimpleFold(r)
			}
			b.WriteRune(r)
		}
	case syntax.OpCharClass:
		i := 2 * g.r.IntN(len(re.Rune)/2)
		lo, hi := re.Rune[i], re.Rune[i+1]
		// Near its ends, or a byte that the grammar takes.
		b.WriteRune(pick(g, lo, hi, min(max('a', lo), hi), min(max('1', lo), hi)))
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteString(pick(g, "a", "b", "1", "-", "/", ",", "\xc3\xa4", "\xff"))
	case syntax.OpCapture, syntax.OpConcat:
		for _, sub := range re.Sub {
			g.sampleTree(b, sub)
		}
	case syntax.OpAlternate:
		g.sampleTree(b, pick(g, re.Sub...))
	case syntax.OpStar:
		few(0, -1)
	case syntax.OpPlus:
		few(1, -1)
	case syntax.OpQuest:
		few(0, 1)
	case syntax.OpRepeat:
		few(re.Min, re.Max)
	}
}
