// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/helper/identity/ca"
)

var errImpersonation = status.Error(codes.Unauthenticated, "request impersonation authentication failure")

// TestRenewal: at half of its life, give or take, a certificate is exchanged for one
// that is asked for like the first: with the token, without showing the old one. There
// is one at any time.
func TestRenewal(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, func(o *Options) { o.TTL = 8 * time.Second })
	c := n.namespace(t, "shop", "alice")
	before := time.Now()
	first := wait(t, c)
	var second *tls.Certificate
	eventually(t, "another certificate", func() bool {
		cert, err := c.Certificate()
		if err != nil {
			t.Fatalf("there is none meanwhile: %v", err)
		}
		second = cert
		return cert != first
	})
	seen := s.seen()
	if len(seen) != 2 || seen[1].id != seen[0].id || seen[1].token != "Bearer the.node.token" || seen[1].shown != 0 || seen[1].from == seen[0].from {
		t.Errorf("requests %+v", seen)
	}
	if first.PrivateKey.(*ecdsa.PrivateKey).Equal(second.PrivateKey) {
		t.Error("the key is the old one")
	}
	if early := before.Add(first.Leaf.NotAfter.Sub(before) * 9 / 20).Add(-time.Millisecond); seen[1].at.Before(early) {
		t.Errorf("asked at %v, before %v", seen[1].at, early)
	}
	if left := first.Leaf.NotAfter.Sub(seen[1].at); left <= time.Second {
		t.Errorf("asked %v before the first ended", left)
	}
	if s := c.Status(); s.Account != "alice" || !s.NotAfter.Equal(second.Leaf.NotAfter) || s.Problem != "" {
		t.Errorf("status %+v", s)
	}
}

// TestHold: when one is exchanged, by how long it is good.
func TestHold(t *testing.T) {
	n := newNode(t, newIstio(t), nil)
	for good, want := range map[time.Duration][2]time.Duration{
		time.Hour:             {27 * time.Minute, 33 * time.Minute},
		24 * time.Hour:        {648 * time.Minute, 792 * time.Minute},
		time.Second:           {time.Second, time.Second},
		-time.Second:          {time.Second, time.Second},
		10 * time.Millisecond: {time.Second, time.Second},
	} {
		c := &Credential{issuer: n.Issuer, log: n.Issuer.log, accounts: []string{"bob", "alice"}}
		seen := map[time.Duration]bool{}
		for range 50 {
			c.take("alice", &tls.Certificate{Leaf: leaf(t, "spiffe://a/ns/b/sa/alice", good)})
			hold := time.Until(c.next)
			// Of it some has passed since.
			if hold > want[1] || hold < want[0]-time.Second {
				t.Fatalf("good for %v: asked again after %v, want %v", good, hold, want)
			}
			seen[hold.Round(time.Second)] = true
		}
		if good > time.Minute && len(seen) < 2 {
			t.Errorf("good for %v: no jitter", good)
		}
		if strings.Join(c.accounts, ",") != "alice,bob" {
			t.Errorf("the next are %q", c.accounts)
		}
	}
}

// TestAccounts: the certificate is of one of the accounts; with the account it goes,
// and another's takes its place; after the last there is none, and none is asked for.
func TestAccounts(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, nil)
	c := n.namespace(t, "shop")
	if _, err := c.Certificate(); err == nil || !contains(err.Error(), "shop", "no service account of it has a pod on this node") {
		t.Errorf("error %v", err)
	}
	set := func(accounts ...string) {
		t.Helper()
		if err := c.SetAccounts(accounts); err != nil {
			t.Fatal(err)
		}
	}
	set("alice")
	first := wait(t, c)
	if got := c.Status(); got.Account != "alice" || !got.NotAfter.Equal(first.Leaf.NotAfter) {
		t.Errorf("status %+v", got)
	}
	if got, err := c.GetClientCertificate(nil); got != first || err != nil {
		t.Errorf("certificate %v, error %v", got, err)
	}

	// More accounts are no reason for another, nor is the same said again.
	set("alice", "bob", "bob")
	set("bob", "alice")
	if got := wait(t, c); got != first || len(s.seen()) != 1 {
		t.Errorf("exchanged after %d requests", len(s.seen()))
	}

	set("bob")
	if got, err := c.Certificate(); got == first || err == nil && got.Leaf.URIs[0].Path != "/ns/shop/sa/bob" {
		t.Errorf("after the account has gone: certificate %v, error %v", got, err)
	}
	second := wait(t, c)
	if got := c.Status(); got.Account != "bob" || second.Leaf.URIs[0].String() != "spiffe://cluster.local/ns/shop/sa/bob" || second.PrivateKey.(*ecdsa.PrivateKey).Equal(first.PrivateKey) {
		t.Errorf("status %+v", got)
	}
	if seen := s.seen(); len(seen) != 2 || seen[1].shown != 0 || seen[1].token == "" {
		t.Errorf("requests %+v", seen)
	}

	set()
	if got, err := c.Certificate(); got != nil || err == nil || !contains(err.Error(), "no service account") {
		t.Errorf("after the last: certificate %v, error %v", got, err)
	}
	c.mu.Lock()
	if c.held != nil {
		t.Errorf("after the last: %v is held", c.held)
	}
	c.mu.Unlock()
	if d := c.due(); d < time.Minute {
		t.Errorf("after the last: something is to do in %v", d)
	}
	if got := c.Status(); got != (Status{Namespace: "shop"}) {
		t.Errorf("status %+v", got)
	}

	// Back again: by a fresh request, the old one is not remembered.
	set("bob")
	if third := wait(t, c); third == second || len(s.seen()) != 3 {
		t.Errorf("the old one is back after %d requests", len(s.seen()))
	}
}

// TestAccountNames: what is none is left out, and told of.
func TestAccountNames(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, nil)
	c := n.namespace(t, "shop")
	err := c.SetAccounts([]string{"x/../alice", "alice", ""})
	if err == nil || !contains(err.Error(), `"x/../alice"`, `""`, "shop", "DNS subdomain") || strings.Contains(err.Error(), `"alice"`) {
		t.Errorf("error %v", err)
	}
	wait(t, c)
	if seen := s.seen(); len(seen) != 1 || seen[0].id != "spiffe://cluster.local/ns/shop/sa/alice" {
		t.Errorf("requests %+v", seen)
	}
}

// TestGoneMeanwhile: an account that goes while it is asked for ends the request, and
// what was answered is not held.
func TestGoneMeanwhile(t *testing.T) {
	s := newIstio(t)
	ended := make(chan struct{})
	s.say(func(ctx context.Context, q asked) (*ca.IstioCertificateResponse, error) {
		if strings.HasSuffix(q.id, "/alice") {
			<-ctx.Done()
			close(ended)
		}
		return s.give(leaf(t, q.id, time.Hour), q.csr.PublicKey), nil
	})
	n := newNode(t, s, nil)
	c := n.namespace(t, "shop", "alice")
	eventually(t, "the request", func() bool { return len(s.seen()) == 1 })
	if err := c.SetAccounts([]string{"bob"}); err != nil {
		t.Fatal(err)
	}
	<-ended
	if cert := wait(t, c); cert.Leaf.URIs[0].Path != "/ns/shop/sa/bob" || c.Status().Problem != "" {
		t.Errorf("certificate of %s, status %+v", cert.Leaf.URIs[0], c.Status())
	}
}

// TestRefusalThenSuccess: it is asked again, soon, and the status says meanwhile why
// there is none.
func TestRefusalThenSuccess(t *testing.T) {
	s := newIstio(t)
	s.refuse(errImpersonation)
	n := newNode(t, s, nil)
	c := n.namespace(t, "shop", "alice")
	eventually(t, "three requests", func() bool { return len(s.seen()) >= 3 })
	for what, text := range map[string]string{"status": c.Status().Problem, "error": errorOf(c)} {
		if !contains(text, "shop", "alice", "Unauthenticated", "set CA_TRUSTED_NODE_ACCOUNTS of istiod to include this helper's service account") {
			t.Errorf("%s: %q", what, text)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := c.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || !contains(err.Error(), "CA_TRUSTED_NODE_ACCOUNTS") {
		t.Errorf("wait: %v", err)
	}
	s.say(nil)
	wait(t, c)
	if got := c.Status(); got.Account != "alice" || got.Problem != "" {
		t.Errorf("status %+v", got)
	}
	seen := s.seen()
	if first, second := seen[1].at.Sub(seen[0].at), seen[2].at.Sub(seen[1].at); first < 50*time.Millisecond || second < 100*time.Millisecond {
		t.Errorf("asked again after %v and %v", first, second)
	}
	// The same words once.
	if got := strings.Count(n.log.String(), "level=WARN"); got != 1 {
		t.Errorf("%d warnings:\n%s", got, n.log)
	}
}

// errorOf is why there is no certificate.
func errorOf(c *Credential) string {
	if _, err := c.Certificate(); err != nil {
		return err.Error()
	}
	return ""
}

// TestRefusedAccount: another account of the namespace does as well.
func TestRefusedAccount(t *testing.T) {
	s := newIstio(t)
	s.say(func(_ context.Context, q asked) (*ca.IstioCertificateResponse, error) {
		if strings.HasSuffix(q.id, "/alice") {
			return nil, errImpersonation
		}
		return s.give(leaf(t, q.id, time.Hour), q.csr.PublicKey), nil
	})
	n := newNode(t, s, nil)
	c := n.namespace(t, "shop", "alice", "bob")
	wait(t, c)
	if got := c.Status(); got.Account != "bob" || got.Problem != "" || len(s.seen()) != 2 {
		t.Errorf("status %+v after %d requests", got, len(s.seen()))
	}
}

// TestNewAccountIsAskedAtOnce: however often others were refused.
func TestNewAccountIsAskedAtOnce(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, nil)
	s.refuse(errImpersonation)
	c := n.namespace(t, "shop", "alice")
	eventually(t, "requests", func() bool { return len(s.seen()) >= 2 })
	c.mu.Lock()
	c.failures, c.next = 30, time.Now().Add(time.Hour)
	c.mu.Unlock()
	s.say(nil)
	if err := c.SetAccounts([]string{"alice", "bob"}); err != nil {
		t.Fatal(err)
	}
	wait(t, c)
	if got := c.Status(); got.Account != "bob" {
		t.Errorf("status %+v", got)
	}
}

// TestNewAccountMeanwhile: one that comes while another is asked for has its turn when
// that is refused, and each is asked for once in a round.
func TestNewAccountMeanwhile(t *testing.T) {
	s := newIstio(t)
	release := make(chan struct{})
	s.say(func(ctx context.Context, q asked) (*ca.IstioCertificateResponse, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil, errImpersonation
	})
	n := newNode(t, s, nil)
	c := n.namespace(t, "shop", "alice")
	eventually(t, "the request", func() bool { return len(s.seen()) == 1 })
	if err := c.SetAccounts([]string{"alice", "bob"}); err != nil {
		t.Fatal(err)
	}
	close(release)
	eventually(t, "more requests", func() bool { return len(s.seen()) >= 4 })
	var got []string
	for _, q := range s.seen()[:4] {
		got = append(got, strings.TrimPrefix(q.id, "spiffe://cluster.local/ns/shop/sa/"))
	}
	if strings.Join(got, ",") != "alice,bob,alice,bob" {
		t.Errorf("asked for %q", got)
	}
}

// TestRefusedRenewal: what is held stays in use until it ends, and the status tells.
func TestRefusedRenewal(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, func(o *Options) { o.TTL = 6 * time.Second })
	c := n.namespace(t, "shop", "alice")
	first := wait(t, c)
	s.refuse(status.Error(codes.Unavailable, "away"))
	eventually(t, "the status tells", func() bool { return contains(c.Status().Problem, "not exchanged", "alice", "away") })
	if got, err := c.Certificate(); got != first || err != nil || c.Status().Account != "alice" {
		t.Errorf("certificate %v, error %v, status %+v", got, err, c.Status())
	}
	eventually(t, "it ends", func() bool { return contains(errorOf(c), "no certificate", "away") })
	if now := time.Now(); now.Before(first.Leaf.NotAfter) {
		t.Errorf("ended at %v, before %v", now, first.Leaf.NotAfter)
	}
	if got := c.Status(); got.Account != "" || !got.NotAfter.IsZero() || !contains(got.Problem, "away") {
		t.Errorf("status %+v", got)
	}
	s.say(nil)
	wait(t, c)
}

// TestWrongAnswerIsNotHeld: and asked again.
func TestWrongAnswerIsNotHeld(t *testing.T) {
	s := newIstio(t)
	s.say(func(_ context.Context, q asked) (*ca.IstioCertificateResponse, error) {
		return s.give(leaf(t, "spiffe://cluster.local/ns/shop/sa/bob", time.Hour), q.csr.PublicKey), nil
	})
	n := newNode(t, s, nil)
	c := n.namespace(t, "shop", "alice")
	eventually(t, "the status tells", func() bool { return contains(c.Status().Problem, "answer is not used", "sa/bob", "sa/alice") })
	if got, err := c.Certificate(); got != nil || err == nil {
		t.Errorf("certificate %v, error %v", got, err)
	}
	s.say(nil)
	wait(t, c)
}

// TestToken: it is read for every request, and stands in no log and in no error, even
// if the CA repeats it.
func TestToken(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, nil)
	tokens := []string{"first.secret", "second.secret", "third secret"}
	n.files.write("token", tokens[0]+"\n")
	shop := n.namespace(t, "shop", "alice")
	wait(t, shop)
	n.files.write("token", tokens[1])
	bank := n.namespace(t, "bank", "bob")
	wait(t, bank)
	if seen := s.seen(); seen[0].token != "Bearer first.secret" || seen[1].token != "Bearer second.secret" {
		t.Errorf("requests %+v", seen)
	}
	var texts []string
	s.say(func(_ context.Context, q asked) (*ca.IstioCertificateResponse, error) {
		return nil, status.Error(codes.Unauthenticated, "I do not like "+q.token)
	})
	mint := n.namespace(t, "mint", "carol")
	eventually(t, "refused", func() bool { return contains(mint.Status().Problem, "I do not like Bearer (the token)") })
	texts = append(texts, mint.Status().Problem, errorOf(mint))
	n.files.write("token", tokens[2])
	eventually(t, "no token", func() bool { return contains(mint.Status().Problem, n.files.path("token"), "holds no token") })
	texts = append(texts, mint.Status().Problem, errorOf(mint))
	if err := os.Remove(n.files.path("token")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no file", func() bool { return contains(mint.Status().Problem, n.files.path("token"), "no such file") })
	s.say(nil)
	n.files.write("token", tokens[0])
	wait(t, mint)
	text := strings.Join(texts, "\n") + n.log.String()
	if strings.Contains(text, "secret") || !contains(n.log.String(), "I do not like", "holds no token", "namespace=mint") {
		t.Errorf("log and errors: %s", text)
	}
}

// TestRoots: they are read for every request; what is of no use leaves the last good
// ones in use.
func TestRoots(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, nil)
	first := wait(t, n.namespace(t, "shop", "alice"))
	n.files.write("root-cert.pem", "half written")
	wait(t, n.namespace(t, "bank", "bob"))
	if !contains(n.log.String(), "last good ones stay", "root-cert.pem has no certificate in it") {
		t.Errorf("log: %s", n.log)
	}
	s.reign("second")
	mint := n.namespace(t, "mint", "carol")
	eventually(t, "the new one is not trusted", func() bool { return contains(mint.Status().Problem, "x509", "RootsFile") })
	if got := len(s.seen()); got != 2 {
		t.Errorf("a CA that is not trusted was asked: %d requests", got)
	}
	n.files.write("root-cert.pem", s.root.pem)
	second := wait(t, mint)
	shows(t, s, second, "spiffe://cluster.local/ns/mint/sa/carol")
	if first.Leaf.Issuer.CommonName == second.Leaf.Issuer.CommonName {
		t.Errorf("both are of %s", first.Leaf.Issuer)
	}
}

// TestClose: everything is forgotten, who waits is told, and nothing goes on.
func TestClose(t *testing.T) {
	s := newIstio(t)
	hangs := make(chan struct{}, 1)
	s.say(func(ctx context.Context, q asked) (*ca.IstioCertificateResponse, error) {
		if strings.Contains(q.id, "/ns/bank/") {
			hangs <- struct{}{}
			<-ctx.Done()
		}
		return s.give(leaf(t, q.id, time.Hour), q.csr.PublicKey), nil
	})
	n := newNode(t, s, nil)
	shop, bank := n.namespace(t, "shop", "alice"), n.namespace(t, "bank", "bob")
	wait(t, shop)
	<-hangs
	told := make(chan error, 1)
	go func() { told <- bank.Wait(context.Background()) }()
	n.Close()
	if err := <-told; !errors.Is(err, ErrClosed) {
		t.Errorf("who waits is told %v", err)
	}
	for _, c := range []*Credential{shop, bank} {
		if cert, err := c.Certificate(); cert != nil || !errors.Is(err, ErrClosed) {
			t.Errorf("certificate %v, error %v", cert, err)
		}
		if err := c.SetAccounts([]string{"alice"}); !errors.Is(err, ErrClosed) {
			t.Errorf("error %v", err)
		}
		if c.held != nil {
			t.Error("a closed credential holds a certificate")
		}
		c.Close() // twice is no harm
	}
	noneLeft(t)
}
