// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/helper/identity/ca"
)

// TestAsk: what the CA is told, and what comes of its answer.
func TestAsk(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, func(o *Options) { o.TTL = 30 * time.Minute })
	first, err := n.ask(t.Context(), "shop", "alice")
	if err != nil {
		t.Fatal(err)
	}
	second, err := n.ask(t.Context(), "shop", "alice.b")
	if err != nil {
		t.Fatal(err)
	}
	seen := s.seen()
	for i, id := range []string{"spiffe://cluster.local/ns/shop/sa/alice", "spiffe://cluster.local/ns/shop/sa/alice.b"} {
		q := seen[i]
		if q.id != id || q.token != "Bearer the.node.token" || q.cluster != cluster || q.validity != 1800 || q.shown != 0 {
			t.Errorf("request %+v", q)
		}
		public, ok := q.csr.PublicKey.(*ecdsa.PublicKey)
		if !ok || public.Curve != elliptic.P256() || len(q.csr.URIs)+len(q.csr.DNSNames)+len(q.csr.Subject.Names) != 0 {
			t.Errorf("certificate request %+v", q.csr)
		}
	}
	if seen[0].from == seen[1].from {
		t.Error("one connection for two requests")
	}
	if first.PrivateKey.(*ecdsa.PrivateKey).Equal(second.PrivateKey) {
		t.Error("one key for two certificates")
	}
	if left := time.Until(first.Leaf.NotAfter); left > 30*time.Minute || left < 25*time.Minute {
		t.Errorf("it is good for %v", left)
	}
	// The leaf and what is between it and the root, but not that: a server that trusts
	// the root takes it.
	if len(first.Certificate) != 2 {
		t.Errorf("%d certificates are shown, want 2", len(first.Certificate))
	}
	shows(t, s, first, "spiffe://cluster.local/ns/shop/sa/alice")
}

// shows checks that a server that trusts the CA's root takes a certificate.
func shows(t *testing.T, s *istio, cert *tls.Certificate, id string) {
	t.Helper()
	clients := x509.NewCertPool()
	s.mu.Lock()
	clients.AddCert(s.root.cert)
	cfg := s.tls.Clone()
	s.mu.Unlock()
	cfg.ClientCAs, cfg.ClientAuth = clients, tls.RequireAndVerifyClientCert
	here, there := net.Pipe()
	defer here.Close()
	server := tls.Server(there, cfg)
	done := make(chan error, 1)
	go func() {
		err := server.Handshake()
		there.Close()
		done <- err
	}()
	client := tls.Client(here, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }})
	_ = client.Handshake()
	_, _ = client.Read(make([]byte, 1)) // in TLS 1.3 the server's word comes after the handshake
	if err := <-done; err != nil {
		t.Fatalf("a server refuses it: %v", err)
	}
	if got := server.ConnectionState().PeerCertificates[0].URIs; len(got) != 1 || got[0].String() != id {
		t.Errorf("a server sees %v, want %s", got, id)
	}
}

// TestTrustDomain: the identity is of the mesh's.
func TestTrustDomain(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, func(o *Options) { o.TrustDomain = "mesh.example" })
	if _, err := n.ask(t.Context(), "shop", "alice"); err != nil {
		t.Fatal(err)
	}
	if got := s.seen()[0]; got.id != "spiffe://mesh.example/ns/shop/sa/alice" || got.validity != 3600 {
		t.Errorf("request %+v", got)
	}
}

// TestWrongAnswers: what the CA answers is not used unless it is what was asked for.
func TestWrongAnswers(t *testing.T) {
	const alice = "spiffe://cluster.local/ns/shop/sa/alice"
	s := newIstio(t)
	stranger := newAuthority(t, "first", nil)
	other := newKey(t)
	// with changes what a leaf says.
	with := func(change func(*x509.Certificate)) func(asked) *ca.IstioCertificateResponse {
		return func(q asked) *ca.IstioCertificateResponse {
			template := leaf(t, alice, time.Hour)
			change(template)
			return s.give(template, q.csr.PublicKey)
		}
	}
	chain := func(texts ...string) func(asked) *ca.IstioCertificateResponse {
		return func(asked) *ca.IstioCertificateResponse { return &ca.IstioCertificateResponse{CertChain: texts} }
	}
	tests := map[string]struct {
		answer func(asked) *ca.IstioCertificateResponse
		part   string // of the error; empty: it is good
	}{
		"good": {with(func(*x509.Certificate) {}), ""},
		"in one string": {func(q asked) *ca.IstioCertificateResponse {
			all := s.give(leaf(t, alice, time.Hour), q.csr.PublicKey)
			return &ca.IstioCertificateResponse{CertChain: []string{strings.Join(all.GetCertChain(), "\n")}}
		}, ""},
		"no root": {func(q asked) *ca.IstioCertificateResponse {
			all := s.give(leaf(t, alice, time.Hour), q.csr.PublicKey)
			return &ca.IstioCertificateResponse{CertChain: all.GetCertChain()[:2]}
		}, ""},
		"nothing":       {chain(), "no certificate in it"},
		"empty strings": {chain("", " \n"), "no certificate in it"},
		"no PEM":        {chain("certificate"), "cert_chain[0] is no certificate in PEM"},
		"a key":         {chain(string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")}))), "cert_chain[0] is no certificate in PEM"},
		"rubbish in PEM": {func(q asked) *ca.IstioCertificateResponse {
			all := s.give(leaf(t, alice, time.Hour), q.csr.PublicKey)
			all.CertChain[1] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
			return all
		}, "cert_chain[1]: x509"},
		"rubbish after": {func(q asked) *ca.IstioCertificateResponse {
			all := s.give(leaf(t, alice, time.Hour), q.csr.PublicKey)
			all.CertChain[2] += "half of"
			return all
		}, "cert_chain[2] is no certificate in PEM"},
		"another key": {func(asked) *ca.IstioCertificateResponse { return s.give(leaf(t, alice, time.Hour), &other.PublicKey) }, "another key"},
		"another identity": {with(func(c *x509.Certificate) { c.URIs = leaf(t, "spiffe://cluster.local/ns/shop/sa/bob", 0).URIs }),
			"is for [spiffe://cluster.local/ns/shop/sa/bob], asked for was " + alice},
		"another trust domain": {with(func(c *x509.Certificate) { c.URIs = leaf(t, "spiffe://evil.example/ns/shop/sa/alice", 0).URIs }), "evil.example"},
		"one more identity": {with(func(c *x509.Certificate) {
			c.URIs = append(c.URIs, leaf(t, "spiffe://cluster.local/ns/shop/sa/bob", 0).URIs...)
		}), "sa/bob"},
		"no identity":      {with(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"alice"} }), "is for []"},
		"expired":          {with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "has expired at"},
		"not yet":          {with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "compare the CA's clock"},
		"for servers only": {with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "not one of a client"},
		"a stranger's":     {func(q asked) *ca.IstioCertificateResponse { return by(stranger, leaf(t, alice, time.Hour), q) }, "leads to RootsFile"},
		"intermediate absent": {func(q asked) *ca.IstioCertificateResponse {
			return onlyLeaf(s.give(leaf(t, alice, time.Hour), q.csr.PublicKey))
		}, "leads to RootsFile"},
		"a long list of names": {with(func(c *x509.Certificate) {
			for range 1000 {
				c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "x"})
			}
		}), "..., asked for was"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, s, nil)
			s.say(func(_ context.Context, q asked) (*ca.IstioCertificateResponse, error) { return tc.answer(q), nil })
			cert, err := n.ask(t.Context(), "shop", "alice")
			switch {
			case tc.part == "" && err != nil:
				t.Errorf("error %v", err)
			case tc.part == "":
				shows(t, s, cert, alice)
			case err == nil || cert != nil || !contains(err.Error(), "the CA's answer is not used", tc.part) || len(err.Error()) > 1000:
				t.Errorf("error %v, want one with %q", err, tc.part)
			}
		})
	}
}

// by answers as another authority.
func by(a *authority, template *x509.Certificate, q asked) *ca.IstioCertificateResponse {
	return &ca.IstioCertificateResponse{CertChain: []string{a.sign(template, q.csr.PublicKey).pem, a.pem}}
}

// onlyLeaf leaves the rest of an answer out.
func onlyLeaf(r *ca.IstioCertificateResponse) *ca.IstioCertificateResponse {
	return &ca.IstioCertificateResponse{CertChain: r.GetCertChain()[:1]}
}

// TestRefusals: each says what to do about it, and never holds the token.
func TestRefusals(t *testing.T) {
	s := newIstio(t)
	n := newNode(t, s, nil)
	tests := map[string]struct {
		err   error
		parts []string
	}{
		"impersonation": {status.Error(codes.Unauthenticated, "request impersonation authentication failure"),
			[]string{"Unauthenticated: request impersonation", "set CA_TRUSTED_NODE_ACCOUNTS of istiod to include this helper's service account"}},
		"token":        {status.Error(codes.Unauthenticated, "request authenticate failure"), []string{"Unauthenticated: request authenticate failure", "TokenFile", "istio-ca"}},
		"TTL":          {status.Error(codes.InvalidArgument, "CSR signing error (requested TTL 2184h0m0s is greater than the max allowed TTL 2160h0m0s)"), []string{"2160h", "set TTL"}},
		"no CA":        {status.Error(codes.Unimplemented, "unknown service"), []string{"Unimplemented", "15012"}},
		"any other":    {status.Error(codes.Internal, "out of ink"), []string{"the CA: Internal: out of ink"}},
		"it repeats":   {status.Error(codes.Unauthenticated, "who is the.node.token?\r\nthe.node.token!"), []string{"who is (the token)?  (the token)!"}},
		"it says much": {status.Error(codes.Internal, strings.Repeat("ä", 1000)), []string{"ä..."}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s.refuse(tc.err)
			_, err := n.ask(t.Context(), "shop", "alice")
			if err == nil || !contains(err.Error(), tc.parts...) || strings.Contains(err.Error(), "the.node.token") || len(err.Error()) > 1000 {
				t.Errorf("error %v, want one with %q", err, tc.parts)
			}
		})
	}
}

// TestWrongServer: the token is shown to nobody but the CA that was meant.
func TestWrongServer(t *testing.T) {
	s := newIstio(t)
	tests := map[string]struct {
		change func(*Options)
		parts  []string
	}{
		"name":    {func(o *Options) { o.ServerName = "other.example" }, []string{"x509", "other.example", "look at RootsFile and ServerName"}},
		"no name": {func(o *Options) { o.ServerName = "" }, []string{"x509", "127.0.0.1", "ServerName"}},
		"stranger": {func(o *Options) {
			o.RootsFile = (folder{t, t.TempDir()}).write("roots", newAuthority(t, "first", nil).pem)
		}, []string{"x509", "unknown authority", "RootsFile"}},
		"nobody": {func(o *Options) { o.Target = closedPort(t) }, []string{"Unavailable", "refused"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, s, tc.change)
			if _, err := n.ask(t.Context(), "shop", "alice"); err == nil || !contains(err.Error(), tc.parts...) {
				t.Errorf("error %v, want one with %q", err, tc.parts)
			}
		})
	}
	if seen := s.seen(); len(seen) != 0 {
		t.Errorf("it was told %+v", seen)
	}
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// FuzzAnswer: nothing that a CA may say breaks the check, and nothing that is not of
// its root passes.
func FuzzAnswer(f *testing.F) {
	f.Add("", "")
	f.Add("-----BEGIN CERTIFICATE-----\neA==\n-----END CERTIFICATE-----\n", "x")
	key, err := ecdsa.GenerateKey(elliptic.P256(), strings.NewReader(strings.Repeat("x", 1000)))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		if cert, err := checkAnswer([]string{first, second}, key, "spiffe://cluster.local/ns/a/sa/b", x509.NewCertPool(), time.Now()); err == nil {
			t.Fatalf("taken: %v", cert.Leaf)
		}
	})
}
