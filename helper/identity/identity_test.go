// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOptions: what cannot be used is refused, with the option and what to do.
func TestOptions(t *testing.T) {
	files := folder{t, t.TempDir()}
	roots, token := files.write("roots", newAuthority(t, "root", nil).pem), files.write("token", "a.b.c\n")
	files.write("empty", "")
	files.write("words", "a secret word")
	if err := os.Mkdir(files.path("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*Options)
		option string // empty: it is good
		parts  []string
	}{
		"good":              {func(*Options) {}, "", nil},
		"no target":         {func(o *Options) { o.Target = "" }, "Target", []string{"give HOST:PORT"}},
		"no port":           {func(o *Options) { o.Target = "istiod" }, "Target", []string{`"istiod"`, "give HOST:PORT"}},
		"URL":               {func(o *Options) { o.Target = "https://istiod:15012" }, "Target", []string{"give HOST:PORT"}},
		"no roots":          {func(o *Options) { o.RootsFile = "" }, "RootsFile", []string{"give the file"}},
		"roots missing":     {func(o *Options) { o.RootsFile = files.path("none") }, "RootsFile", []string{files.path("none"), "no such file"}},
		"roots empty":       {func(o *Options) { o.RootsFile = files.path("empty") }, "RootsFile", []string{"PEM"}},
		"roots a folder":    {func(o *Options) { o.RootsFile = files.path("folder") }, "RootsFile", []string{"not a regular file"}},
		"no token":          {func(o *Options) { o.TokenFile = "" }, "TokenFile", []string{"give the file"}},
		"token missing":     {func(o *Options) { o.TokenFile = files.path("none") }, "TokenFile", []string{files.path("none"), "no such file"}},
		"token empty":       {func(o *Options) { o.TokenFile = files.path("empty") }, "TokenFile", []string{"is empty", "write"}},
		"token of words":    {func(o *Options) { o.TokenFile = files.path("words") }, "TokenFile", []string{"holds no token"}},
		"no cluster":        {func(o *Options) { o.ClusterID = "" }, "ClusterID", []string{"Kubernetes"}},
		"cluster of words":  {func(o *Options) { o.ClusterID = "a\nb" }, "ClusterID", []string{"control characters"}},
		"trust domain":      {func(o *Options) { o.TrustDomain = "cluster.local/ns/x" }, "TrustDomain", []string{`"cluster.local/ns/x"`, "small letters"}},
		"long trust domain": {func(o *Options) { o.TrustDomain = strings.Repeat("a", 256) }, "TrustDomain", []string{"255"}},
		"TTL short":         {func(o *Options) { o.TTL = time.Millisecond }, "TTL", []string{"1ms", "a second or more"}},
		"TTL negative":      {func(o *Options) { o.TTL = -time.Hour }, "TTL", []string{"a second or more"}},
		"TTL long":          {func(o *Options) { o.TTL = 91 * 24 * time.Hour }, "TTL", []string{"2184h", "2160h", "give less"}},
		"TTL longest":       {func(o *Options) { o.TTL = 90 * 24 * time.Hour }, "", nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			// Nobody listens there: New does not mind.
			o := Options{Target: "127.0.0.1:1", RootsFile: roots, TokenFile: token, ClusterID: cluster}
			tc.change(&o)
			i, err := New(o)
			if tc.option == "" {
				if err != nil {
					t.Fatal(err)
				}
				i.Close()
				return
			}
			var bad *OptionError
			if !errors.As(err, &bad) || bad.Option != tc.option || !contains(err.Error(), tc.parts...) || strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v, want option %s with %q", err, tc.option, tc.parts)
			}
		})
	}
}

// TestNames: names that would make another identity are none.
func TestNames(t *testing.T) {
	tests := []struct {
		name                      string
		label, subdomain, trusted bool
	}{
		{"default", true, true, true},
		{"a", true, true, true},
		{"0-1", true, true, true},
		{"a.b", false, true, true},
		{"a_b", false, false, true},
		{"", false, false, false},
		{"-a", false, false, true},
		{"a-", false, false, true},
		{"a..b", false, false, true},
		{".a", false, false, true},
		{"a.", false, false, true},
		{"A", false, false, false},
		{"a/sa/b", false, false, false},
		{"a%2fb", false, false, false},
		{"a b", false, false, false},
		{"a\x00", false, false, false},
		{"ä", false, false, false},
		{"a?b", false, false, false},
		{"a#b", false, false, false},
		{"a@b", false, false, false},
		{"a:1", false, false, false},
		{strings.Repeat("a", 63), true, true, true},
		{strings.Repeat("a", 64), false, true, true},
		{strings.Repeat("a.", 126) + "a", false, true, true},
		{strings.Repeat("a.", 127) + "a", false, false, true},
		{strings.Repeat("a", 256), false, false, false},
	}
	for _, tc := range tests {
		if got := isLabel(tc.name); got != tc.label {
			t.Errorf("%q is a label: %v", tc.name, got)
		}
		if got := isSubdomain(tc.name); got != tc.subdomain {
			t.Errorf("%q is a subdomain: %v", tc.name, got)
		}
		if got := isTrustDomain(tc.name); got != tc.trusted {
			t.Errorf("%q is a trust domain: %v", tc.name, got)
		}
	}
}

// FuzzID: an identity that is made of allowed names reads as these, and no other.
func FuzzID(f *testing.F) {
	f.Add("cluster.local", "shop", "alice")
	f.Add("a/ns/b", "shop", "alice")
	f.Add("a", "shop/sa/x", "..")
	f.Fuzz(func(t *testing.T, domain, ns, account string) {
		if !isTrustDomain(domain) || !isLabel(ns) || !isSubdomain(account) {
			return
		}
		id := (&Issuer{opts: Options{TrustDomain: domain}}).id(ns, account)
		u, err := url.Parse(id)
		if err != nil || u.String() != id || u.Scheme != "spiffe" || u.Host != domain || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
			!slices.Equal(strings.Split(u.Path, "/"), []string{"", "ns", ns, "sa", account}) {
			t.Fatalf("%q reads as %+v (%v)", id, u, err)
		}
	})
}

// TestNamespaces: one credential for each, until it is closed.
func TestNamespaces(t *testing.T) {
	n := newNode(t, newIstio(t), nil)
	if _, err := n.Namespace("a.b"); err == nil || !contains(err.Error(), `"a.b"`, "DNS label") {
		t.Errorf("error %v", err)
	}
	shop, bank := n.namespace(t, "shop"), n.namespace(t, "bank")
	if again := n.namespace(t, "shop"); again != shop || shop == bank {
		t.Error("not one credential for each namespace")
	}
	if s := n.Status(); len(s) != 2 || s[0] != (Status{Namespace: "bank"}) || s[1] != (Status{Namespace: "shop"}) {
		t.Errorf("status %+v", s)
	}
	shop.Close()
	if again := n.namespace(t, "shop"); again == shop {
		t.Error("a closed credential was given out")
	}
	n.Close()
	if _, err := n.Namespace("shop"); !errors.Is(err, ErrClosed) {
		t.Errorf("error %v", err)
	}
	if s := n.Status(); len(s) != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestBackoff: quick at first, 15 s at last, and never in step.
func TestBackoff(t *testing.T) {
	for failures, want := range map[int]time.Duration{0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 7: 12800 * time.Millisecond,
		8: 15 * time.Second, 15: 15 * time.Second, 16: 15 * time.Second, 1 << 40: 15 * time.Second} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := backoff(failures)
			if d < want/2 || d > want {
				t.Fatalf("after %d: %v, want between half and all of %v", failures, d, want)
			}
			seen[d] = true
		}
		if len(seen) < 2 {
			t.Errorf("after %d: no jitter", failures)
		}
	}
}
