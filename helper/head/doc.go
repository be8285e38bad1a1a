// SPDX-License-Identifier: Apache-2.0

// Package head is the reference for HTTP/1 message heads: what is routed, what is
// refused and what stays on its connection as bytes (a security boundary: the
// client's bytes go on unchanged, so whatever two parsers could read differently is
// refused, never guessed). It is written to be obviously right, not to be fast; the
// byte tables and the kernel's machine are held against it.
//
// # The invariant: a decision is a function of the bytes, made at one byte
//
// A head is read once, from left to right, one byte at a time, with no look-ahead.
// Every decision is made *at* a byte and is final: for each input there is one
// deciding byte (Outcome.At is its number, counted from 1); every shorter prefix is
// Incomplete, every longer input has the same outcome, whatever follows. So it does
// not matter how the bytes are cut into segments.
//
// # When each rule fires (the grammar; anything that is not listed goes on)
//
// Byte 8193, whatever it is, fires head-too-long if the head has not ended before.
//
// tchar is token char of RFC 9110 5.6.2. CTL is 00-1f and 7f. blank is SP or HTAB.
// "x:rule" below means: reading byte x here fires the rule, at that byte.
//
//	start            16 -> next byte is 03: tls, other: opaque (both at the second byte)
//	                 CR LF SP HTAB VT FF: leading-blank    not tchar: opaque
//	                 tchar -> method
//	method           tchar*    HTAB VT FF: request-line-blank    LF: opaque
//	                 CR -> next byte is LF: opaque, other: bare-cr (both at that next byte)
//	                 other not tchar: opaque
//	                 SP: connect if the method is "CONNECT" (the case counts), else -> target
//	target           first byte
//	                 SP HTAB VT FF: request-line-blank    CR: as in method    '/' -> path
//	                 '*': star-target unless the method is OPTIONS or PRI
//	                     OPTIONS: the next byte is SP -> version, other: star-target
//	                     PRI: " HTTP/2" byte by byte; the '2': h2, any other byte: star-target
//	                 other CTL, LF: opaque    other -> word
//	word             (it includes the first byte) as soon as it is "http://" or "https://" in
//	                 any case -> authority; as soon as it is another scheme and "://", the second
//	                 '/': target-form (scheme is a letter, then letters, digits, '+', '-', '.')
//	                 SP -> SP*, then "HTTP/" byte by byte; its '/': target-form, any other byte: opaque
//	                 other CTL, CR, LF: opaque
//	authority        host (below); a byte that cannot continue it: target-authority
//	                 '/' '?' SP, when it is a whole host -> path (after '/'), query, version;
//	                 when it is not: target-authority. "http://a" and "http://a?q" have path "/".
//	path             '?' -> query (only the first)    SP -> version
//	query            SP -> version
//	  in both        '#': fragment    other CTL, CR, LF: target-byte
//	version          "HTTP/" byte by byte, any other byte: version
//	                 digit 1; other digit: version-unsupported; no digit: version
//	                 '.', other: version
//	                 digit 0 or 1; other digit: version-unsupported; no digit: version
//	                 CR; LF: bare-lf; other: version        LF; other: bare-cr
//	line             first byte: CR -> LF ends the head, other: bare-cr    LF: bare-lf
//	                 blank: obs-fold    not tchar: field-name
//	                 tchar: too-many-fields if 100 lines were read before
//	name             tchar*    blank: blank-before-colon    other not tchar: field-name
//	                 ':': repeated-host, repeated-content-length, repeated-transfer-encoding
//	                 when the name (in any case) is one of these and was read before
//	value            LF: bare-lf    CTL except HTAB: field-value-byte
//	                 CR -> next byte is LF -> line, other: bare-cr
//	  Host           blank* host blank*; a byte that cannot continue it: host;
//	                 CR when there is no whole host: host (at the CR)
//	  Content-Length blank* digit+ blank*; any other byte: content-length; CR without a digit:
//	                 content-length; the 20th digit, or the digit that makes the number greater
//	                 than 2^63-1: content-length
//	  Transfer-Encoding  SP* then "chunked" in any case then CR, nothing between; any other
//	                 byte (also HTAB, also SP after it, also a CR too early): transfer-encoding
//	  The rules for LF and CTL come before those of the field (a HTAB is no such CTL).
//	end of the head  at its last LF, in this order:
//	                 host-missing        no Host, and HTTP/1.1 or absolute form
//	                 host-differs        absolute form, and its authority is not the Host, byte by byte
//	                 te-with-content-length
//	                 te-in-1.0
//	                 route
//
// host is  name [ ":" 1-5 digits ]  or  "[" 1+ of hex digit, ':', '.' "]" [ ":" 1-5 digits ]
// where name is one or more of A-Z a-z 0-9 '.' '-' '_'.
//
// A response head: "HTTP/1." digit 0 or 1, SP, digit 1-5, two digits, then CR LF or SP and any bytes
// but CTL (HTAB is allowed) up to CR LF; another byte: status-line (LF: bare-lf; after a CR: bare-cr).
// Lines as above, without Host, without limits of length and number; nothing can be refused any
// more, so every rule that fires pins the connection: what follows cannot be framed.
package head
