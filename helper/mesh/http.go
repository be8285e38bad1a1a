// SPDX-License-Identifier: Apache-2.0

package mesh

// HTTP is the HTTP routing of a service. Its virtual hosts are searched by the
// request's host: an exact domain first, then the longest suffix wildcard ("*.b"),
// then the longest prefix wildcard ("a.*"), then "*" (Envoy's order). A request
// whose host no virtual host has is answered 404.
type HTTP struct {
	VirtualHosts []*VirtualHost
	// IgnorePort: a port in the request's host takes no part in the search
	// (ignore_port_in_host_matching).
	IgnorePort bool
}

// VirtualHost is the routes of some domains.
type VirtualHost struct {
	Name string
	// Domains are lower-case: "a.b", "a.b:80", "*.b", "a.*" or "*".
	Domains []string
	// Routes in the order in which they are tried: the first match wins. A request
	// that none matches is answered 404.
	Routes []*Route
}

// Route is a condition and what to do when it holds.
type Route struct {
	Name  string
	Match RouteMatch
	// Abort is tried before the action; nil: never.
	Abort *Abort
	// Hash is what MAGLEV clusters are indexed by; without it, they are drawn from
	// at random, as Envoy does.
	Hash Hash
	// Exactly one of the following is set.
	Clusters []WeightedCluster // forward
	Redirect *Redirect
	Direct   *DirectResponse
	// Unsupported: the route has a condition that cannot be tested in the kernel,
	// or leads to a cluster that does not exist. Requests that match the rest are
	// answered 503, so that the route is neither widened nor skipped. The actions
	// above are then empty.
	Unsupported bool
}

// HashKind says what is hashed of a request.
type HashKind uint8

// The kinds of hash.
const (
	HashNone   HashKind = iota
	HashSource          // the client pod's address
	HashHeader          // a header's value; none: drawn at random
)

// Hash is a hash policy.
type Hash struct {
	Kind   HashKind
	Header string // lower-case, at most MaxHashHeader bytes
}

// MaxHashHeader is the longest name of a header that is hashed, in bytes.
const MaxHashHeader = 40

// RouteMatch is a conjunction: every part must hold.
type RouteMatch struct {
	Path    PathMatch
	Headers []HeaderMatch
	Query   []QueryMatch
	// Fraction of the requests that match the rest and are taken; nil: all.
	Fraction *Fraction
}

// PathKind says how a path is compared. The path is the target up to "?", as
// it was sent: nothing is decoded. (A "#" in a target is refused: see package head.)
type PathKind uint8

// The kinds of path match.
const (
	PathPrefix        PathKind = iota // Value is a prefix; "" and "/" match every path
	PathExact                         // Value is the path
	PathSegmentPrefix                 // Value, or Value followed by "/" (path_separated_prefix)
	PathRegex                         // Value, an RE2 expression, matches the whole path
)

// PathMatch compares the path.
type PathMatch struct {
	Kind       PathKind
	Value      string
	IgnoreCase bool // ASCII; not for PathRegex, which has (?i)
}

// StringKind says how a string is compared.
type StringKind uint8

// The kinds of string match.
const (
	StringExact StringKind = iota
	StringPrefix
	StringSuffix
	StringContains
	StringRegex // RE2, the whole string, which must be valid UTF-8
)

// StringMatch compares a string.
type StringMatch struct {
	Kind       StringKind
	Value      string
	IgnoreCase bool // ASCII; not for StringRegex
}

// HeaderKind says what is asked of a header.
type HeaderKind uint8

// The kinds of header match.
const (
	HeaderString  HeaderKind = iota // the value matches Match
	HeaderRange                     // the value is a decimal integer in [Start, End)
	HeaderPresent                   // the header is there, with any value
	HeaderAbsent                    // the header is not there
)

// HeaderMatch tests one header. The value is that of all occurrences joined by ","
// (RFC 9110, section 5.3), each without surrounding blanks. A header that is
// missing fails HeaderString and HeaderRange whether inverted or not, unless
// MissingAsEmpty, which makes it the empty string.
type HeaderMatch struct {
	// Name is lower-case. ":method" is the method, ":authority" the host as sent.
	Name           string
	Kind           HeaderKind
	Match          StringMatch
	Start, End     int64
	Invert         bool
	MissingAsEmpty bool
}

// QueryMatch tests a parameter of the query: the first one of that name, as it was
// sent, in "name=value" separated by "&"; a name without "=" has the empty value.
type QueryMatch struct {
	Name string
	// Present: any value will do; Match is not used.
	Present bool
	Match   StringMatch
}

// Fraction is a probability: Numerator / Denominator, the latter being 100, 10,000
// or 1,000,000.
type Fraction struct {
	Numerator, Denominator uint32
}

// Abort answers a fraction of a route's requests with a status.
type Abort struct {
	Fraction Fraction
	Status   uint16 // 200 to 599
}

// Redirect answers with a Location made of the request's own URL in which some
// parts are replaced.
type Redirect struct {
	Status uint16 // 301, 302, 303, 307 or 308
	Scheme string // "" keeps the request's: "http"
	Host   string // "" keeps the request's
	Port   uint16 // 0: the request's, unless Host is replaced, or it is 80 and Scheme is
	// At most one of Path and Prefix is set. Path replaces the path, and the query
	// if it has one of its own; Prefix replaces the part of the path that the
	// route's path match is about.
	Path, Prefix string
	StripQuery   bool
}

// DirectResponse answers without an endpoint.
type DirectResponse struct {
	Status uint16
	Body   []byte
}
