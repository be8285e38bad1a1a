// SPDX-License-Identifier: Apache-2.0

package head

import "strings"

func isCTL(c byte) bool   { return c < 0x20 || c == 0x7f }
func isBlank(c byte) bool { return c == ' ' || c == '\t' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isAlpha(c byte) bool { return 'a' <= lower(c) && lower(c) <= 'z' }

func isHex(c byte) bool { return isDigit(c) || 'a' <= lower(c) && lower(c) <= 'f' }

// isTchar: RFC 9110, section 5.6.2.
func isTchar(c byte) bool {
	return isDigit(c) || isAlpha(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// lower folds ASCII; other bytes are themselves.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// equalFold compares, folding ASCII only.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// SplitHost returns the host of an authority in lower case, and its port. It does not
// ask whether either is valid.
func SplitHost(authority string) (host, port string) {
	host = authority
	if i := strings.LastIndexByte(authority, ':'); i > strings.LastIndexByte(authority, ']') {
		host, port = authority[:i], authority[i+1:]
	}
	return strings.ToLower(host), port
}

// hostState says how much of a host has been read.
type hostState uint8

const (
	hostBad   hostState = iota
	hostStart           // nothing
	hostName            // of a name or an IPv4 address
	hostOpen            // "["
	hostSix             // of an IPv6 address
	hostClose           // "]"
	hostColon           // ":" before the port
	hostPort            // 1 digit of the port
	_
	_
	_
	hostPort5 // 5 digits
)

// next returns the state after one more byte.
func (s hostState) next(c byte) hostState {
	nameByte := isDigit(c) || isAlpha(c) || c == '.' || c == '-' || c == '_'
	sixByte := isHex(c) || c == ':' || c == '.'
	switch {
	case (s == hostStart || s == hostName) && nameByte:
		return hostName
	case s == hostStart && c == '[':
		return hostOpen
	case (s == hostOpen || s == hostSix) && sixByte:
		return hostSix
	case s == hostSix && c == ']':
		return hostClose
	case (s == hostName || s == hostClose) && c == ':':
		return hostColon
	case s >= hostColon && s < hostPort5 && isDigit(c):
		return s + 1
	default:
		return hostBad
	}
}

// whole says whether what was read is a host.
func (s hostState) whole() bool {
	return s == hostName || s == hostClose || s >= hostPort
}
