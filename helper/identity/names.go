// SPDX-License-Identifier: Apache-2.0

package identity

import "strings"

// An identity is put together of names. What could end one of them early, or add a
// part to it, would be another identity: so they are checked by what is allowed.

// isLabel tells whether a name is a DNS label as Kubernetes has it.
func isLabel(s string) bool {
	return len(s) <= 63 && isPart(s)
}

// isSubdomain tells whether a name is a DNS subdomain as Kubernetes has it: what a
// service account may be called.
func isSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isPart(part) {
			return false
		}
	}
	return true
}

// isPart tells whether s is of small letters, digits and hyphens, and neither begins
// nor ends with one of the last.
func isPart(s string) bool {
	return consistsOf(s, "-") && s[0] != '-' && s[len(s)-1] != '-'
}

// isTrustDomain follows SPIFFE.
func isTrustDomain(s string) bool {
	return len(s) <= 255 && consistsOf(s, ".-_")
}

// consistsOf tells whether s is of small letters, digits and others, and not empty.
func consistsOf(s, others string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return s != ""
}

// printable tells whether s can stand in a header as it is.
func printable(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}
