// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"fmt"
	"math/big"
	"slices"
	"strings"

	"kmesh/helper/mesh"
)

// RouteRef names a route.
type RouteRef struct {
	VirtualHost string `json:"virtualHost"`
	Index       int    `json:"index"`
	Name        string `json:"name,omitempty"`
}

func (r RouteRef) String() string {
	s := fmt.Sprintf("%s[%d]", r.VirtualHost, r.Index)
	if r.Name != "" {
		s += " " + r.Name
	}
	return s
}

// Decision is what becomes of a request.
type Decision struct {
	// VirtualHost has the request's host; "" if none has, and FoundHost is false.
	VirtualHost string `json:"virtualHost,omitempty"`
	FoundHost   bool   `json:"foundHost"`
	// Routes that may decide: those that take a fraction of the requests, in order,
	// then the one that takes all that they leave. Without such a one the rest has
	// no route.
	Routes []RouteRef `json:"routes"`
	// Outcomes and their shares, greatest first.
	Outcomes []Outcome `json:"outcomes"`
}

// Outcome is what is done with a share of the requests.
type Outcome struct {
	Action string   `json:"action"`
	Share  *big.Rat `json:"share"`
}

// Same tells whether two decisions do the same to the request, by whatever routes.
func (d *Decision) Same(o *Decision) bool {
	return slices.EqualFunc(d.Outcomes, o.Outcomes, func(a, b Outcome) bool {
		return a.Action == b.Action && a.Share.Cmp(b.Share) == 0
	})
}

func (d *Decision) String() string {
	var parts []string
	for _, o := range d.Outcomes {
		if len(d.Outcomes) == 1 {
			return o.Action
		}
		parts = append(parts, percent(o.Share)+" "+o.Action)
	}
	return strings.Join(parts, ", ")
}

// percent writes a share exactly if four digits after the point are enough.
func percent(share *big.Rat) string {
	p := new(big.Rat).Mul(share, big.NewRat(100, 1))
	for digits := range 5 {
		s := p.FloatString(digits)
		if r, ok := new(big.Rat).SetString(s); ok && r.Cmp(p) == 0 {
			return s + "%"
		}
	}
	return "~" + p.FloatString(4) + "%"
}

// shares collects outcomes.
type shares struct{ of map[string]*big.Rat }

func newShares() *shares { return &shares{map[string]*big.Rat{}} }

func (s *shares) add(action string, share *big.Rat) {
	if share.Sign() == 0 {
		return
	}
	sum, ok := s.of[action]
	if !ok {
		sum = new(big.Rat)
		s.of[action] = sum
	}
	sum.Add(sum, share)
}

func (s *shares) outcomes() []Outcome {
	var out []Outcome
	for action, share := range s.of {
		out = append(out, Outcome{action, share})
	}
	slices.SortFunc(out, func(a, b Outcome) int {
		if c := b.Share.Cmp(a.Share); c != 0 {
			return c
		}
		return strings.Compare(a.Action, b.Action)
	})
	return out
}

// decide is what a chain of routes does.
func decide(chain []*mesh.Route) []Outcome {
	s := newShares()
	left := big.NewRat(1, 1)
	for _, r := range chain {
		taken := fraction(r.Match.Fraction)
		s.route(r, new(big.Rat).Mul(left, taken))
		left.Sub(left, new(big.Rat).Mul(left, taken))
	}
	s.add("404", left)
	return s.outcomes()
}

// fraction is a number from 0 to 1; nil is 1.
func fraction(f *mesh.Fraction) *big.Rat {
	if f == nil || f.Numerator >= f.Denominator {
		return big.NewRat(1, 1)
	}
	return big.NewRat(int64(f.Numerator), int64(f.Denominator))
}

// route adds what a route does with a share.
func (s *shares) route(r *mesh.Route, share *big.Rat) {
	share = new(big.Rat).Set(share)
	if r.Unsupported {
		s.add("503 (a condition that cannot be tested)", share)
		return
	}
	if r.Abort != nil {
		aborted := fraction(&r.Abort.Fraction)
		aborted.Mul(aborted, share)
		s.add(fmt.Sprintf("abort %d", r.Abort.Status), aborted)
		share.Sub(share, aborted)
	}
	switch {
	case r.Redirect != nil:
		s.add(redirect(r), share)
	case r.Direct != nil:
		s.add(fmt.Sprintf("response %d %q", r.Direct.Status, r.Direct.Body), share)
	default:
		s.clusters(r.Clusters, hashed(r.Hash), share)
	}
}

// hashed says by what a route chooses among a cluster's endpoints.
func hashed(h mesh.Hash) string {
	switch h.Kind {
	case mesh.HashSource:
		return " by the client's address"
	case mesh.HashHeader:
		return " by header " + h.Header
	}
	return ""
}

func (s *shares) clusters(clusters []mesh.WeightedCluster, by string, share *big.Rat) {
	total := new(big.Int)
	for _, c := range clusters {
		total.Add(total, big.NewInt(int64(c.Weight)))
	}
	if total.Sign() == 0 {
		s.add("503 (no cluster)", share)
		return
	}
	for _, c := range clusters {
		part := new(big.Rat).SetFrac(big.NewInt(int64(c.Weight)), total)
		s.add("cluster "+c.Cluster+by, part.Mul(part, share))
	}
}

// redirect says what makes the Location, so that redirects that make the same of the
// paths that their routes match are the same.
func redirect(r *mesh.Route) string {
	d, match := r.Redirect, r.Match.Path
	var b strings.Builder
	fmt.Fprintf(&b, "redirect %d", d.Status)
	part := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, " %s=%s", name, value)
		}
	}
	part("scheme", d.Scheme)
	part("host", d.Host)
	if d.Port != 0 {
		fmt.Fprintf(&b, " port=%d", d.Port)
	}
	path, strip := d.Path, d.StripQuery
	whole := match.Kind == mesh.PathExact || match.Kind == mesh.PathRegex
	switch {
	case strings.Contains(d.Path, "?"):
		strip = true
	case d.Prefix != "" && whole && !strings.Contains(d.Prefix, "?"):
		path = d.Prefix
	case d.Prefix != "" && whole:
		fmt.Fprintf(&b, " path=%s and the query", d.Prefix)
	case d.Prefix != "":
		// What both have at their ends stays: "/a/c" by "/b/c" is "/a" by "/b". But
		// "/" is a prefix of "*" too.
		old, with := match.Value, d.Prefix
		for old != "/" && !match.IgnoreCase && old != "" && with != "" && old[len(old)-1] == with[len(with)-1] {
			old, with = old[:len(old)-1], with[:len(with)-1]
		}
		fmt.Fprintf(&b, " path=%q+path[%d:]", with, len(old))
	}
	part("path", path)
	if strip {
		b.WriteString(" without query")
	}
	return b.String()
}
