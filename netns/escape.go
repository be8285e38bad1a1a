// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"strings"
)

// maxName is NAME_MAX: neither bpffs nor the run directory takes a longer name.
const maxName = 255

const hexDigits = "0123456789abcdef"

// plain says whether c stands for itself in an escaped name. The dot does not: bpffs reserves it. Neither does '=', which marker directories use,
// nor '@', which separates the parts of a record's file name.
func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == ':'
}

// escape turns s into a file name that bpffs accepts. It is injective, and unescape is its inverse.
func escape(s string) (string, error) {
	if s == "" {
		return "", fmt.Errorf("empty name: give it at least one character")
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	if b.Len() > maxName {
		return "", fmt.Errorf("name of %d bytes is too long: shorten it to %d", b.Len(), maxName)
	}
	return b.String(), nil
}

// unescape reverses escape and refuses what escape cannot have made.
func unescape(name string) (string, error) {
	if name == "" || len(name) > maxName {
		return "", fmt.Errorf("name of %d bytes is not an escaped one", len(name))
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if plain(name[i]) {
			b.WriteByte(name[i])
			continue
		}
		if name[i] != '%' || i+2 >= len(name) {
			return "", fmt.Errorf("name %q has an unescaped byte at %d", name, i)
		}
		hi, lo := strings.IndexByte(hexDigits, name[i+1]), strings.IndexByte(hexDigits, name[i+2])
		if hi < 0 || lo < 0 || plain(byte(hi<<4|lo)) {
			return "", fmt.Errorf("name %q has a wrong escape at %d", name, i)
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), nil
}
