// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"fmt"
	"strconv"
	"strings"
)

// rangeRegex is an expression for the decimal integers in [start, end), as
// strconv.ParseInt reads them: a sign, leading zeros.
func rangeRegex(start, end int64) string {
	if start >= end {
		return `[^\x00-\x{10ffff}]`
	}
	last := end - 1
	var alts []string
	if start < 0 {
		// The magnitudes -lo..-hi; uint64, for the smallest int64 has no opposite.
		lo := uint64(0)
		if last < 0 {
			lo = -uint64(last)
		}
		alts = append(alts, "-0*(?:"+digitsRegex(lo, -uint64(start))+")")
	} else if start == 0 {
		alts = append(alts, "-0+")
	}
	if last >= 0 {
		lo := uint64(max(start, 0))
		alts = append(alts, `\+?0*(?:`+digitsRegex(lo, uint64(last))+")")
	}
	return strings.Join(alts, "|")
}

// digitsRegex is an expression for the numbers from lo to hi without leading zeros,
// but for 0 itself.
func digitsRegex(lo, hi uint64) string {
	var alts []string
	for {
		l := strconv.FormatUint(lo, 10)
		// The greatest number of as many digits.
		top := hi
		if nines, err := strconv.ParseUint(strings.Repeat("9", len(l)), 10, 64); err == nil {
			top = min(hi, nines)
		}
		alts = append(alts, sameLength(l, strconv.FormatUint(top, 10)))
		if top == hi {
			return strings.Join(alts, "|")
		}
		lo = top + 1
	}
}

// sameLength is an expression for the numbers from lo to hi, which have as many digits.
func sameLength(lo, hi string) string {
	switch {
	case lo == hi:
		return lo
	case len(lo) == 1:
		return fmt.Sprintf("[%s-%s]", lo, hi)
	case lo[0] == hi[0]:
		return lo[:1] + "(?:" + sameLength(lo[1:], hi[1:]) + ")"
	}
	n := len(lo) - 1
	zeros, nines := strings.Repeat("0", n), strings.Repeat("9", n)
	var alts []string
	first, last := lo[0], hi[0]
	if lo[1:] != zeros {
		alts = append(alts, string(first)+"(?:"+sameLength(lo[1:], nines)+")")
		first++
	}
	if hi[1:] != nines {
		alts = append(alts, string(last)+"(?:"+sameLength(zeros, hi[1:])+")")
		last--
	}
	if first <= last {
		alts = append(alts, fmt.Sprintf("[%c-%c][0-9]{%d}", first, last, n))
	}
	return strings.Join(alts, "|")
}
