// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"kmesh/helper/identity/ca"
)

const (
	caName  = "istiod.istio-system.svc"
	cluster = "Kubernetes"
)

// authority is a certificate authority: a root, or what one has signed.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newAuthority makes one; by a parent, or a root.
func newAuthority(t *testing.T, name string, parent *authority) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if parent == nil {
		parent = &authority{t: t, cert: template, key: key}
	}
	cert := parent.sign(template, &key.PublicKey)
	parsed, err := x509.ParseCertificate(cert.der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: parsed, key: key, pem: cert.pem}
}

type signed struct {
	der []byte
	pem string
}

// sign signs what a template says.
func (a *authority) sign(template *x509.Certificate, public crypto.PublicKey) signed {
	a.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return signed{der, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

// leaf is a workload's certificate as Istio's CA makes it.
func leaf(t *testing.T, id string, good time.Duration) *x509.Certificate {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-2 * time.Minute), NotAfter: time.Now().Add(good),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
}

// asked is a request as the CA has seen it.
type asked struct {
	id       string // in whose name
	token    string
	cluster  string
	validity int64
	csr      *x509.CertificateRequest
	shown    int    // certificates of the client's
	from     string // its address
	at       time.Time
}

// istio plays Istio's CA.
type istio struct {
	ca.UnimplementedIstioCertificateServiceServer
	t    *testing.T
	addr string

	mu           sync.Mutex
	root, signer *authority
	tls          *tls.Config
	requests     []asked
	// answer is what it says; nil: what was asked for.
	answer func(ctx context.Context, q asked) (*ca.IstioCertificateResponse, error)
}

// newIstio starts one.
func newIstio(t *testing.T) *istio {
	t.Helper()
	s := &istio{t: t}
	s.reign("first")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{NextProtos: []string{"h2"}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.tls, nil
	}})))
	ca.RegisterIstioCertificateServiceServer(g, s)
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(g.Stop)
	return s
}

// reign puts a new root in place, an intermediate below it, and the server's own
// certificate.
func (s *istio) reign(name string) {
	root := newAuthority(s.t, name, nil)
	signer := newAuthority(s.t, name+" below", root)
	key := newKey(s.t)
	own := signer.sign(&x509.Certificate{DNSNames: []string{caName}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, &key.PublicKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root, s.signer = root, signer
	s.tls = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{own.der, signer.cert.Raw}, PrivateKey: key}}}
}

// say changes what it answers.
func (s *istio) say(answer func(context.Context, asked) (*ca.IstioCertificateResponse, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// refuse makes it refuse everything.
func (s *istio) refuse(err error) {
	s.say(func(context.Context, asked) (*ca.IstioCertificateResponse, error) { return nil, err })
}

// seen returns the requests so far.
func (s *istio) seen() []asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// give answers as Istio's does.
func (s *istio) give(template *x509.Certificate, public crypto.PublicKey) *ca.IstioCertificateResponse {
	s.mu.Lock()
	root, signer := s.root, s.signer
	s.mu.Unlock()
	return &ca.IstioCertificateResponse{CertChain: []string{signer.sign(template, public).pem, signer.pem, root.pem}}
}

// CreateCertificate implements the service.
func (s *istio) CreateCertificate(ctx context.Context, req *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	head, _ := metadata.FromIncomingContext(ctx)
	who, _ := peer.FromContext(ctx)
	block, _ := pem.Decode([]byte(req.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, err
	}
	q := asked{id: req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue(), validity: req.GetValidityDuration(), csr: csr,
		token: strings.Join(head.Get("authorization"), ","), cluster: strings.Join(head.Get("clusterid"), ","),
		shown: len(who.AuthInfo.(credentials.TLSInfo).State.PeerCertificates), from: who.Addr.String(), at: time.Now()}
	s.mu.Lock()
	s.requests = append(s.requests, q)
	answer := s.answer
	s.mu.Unlock()
	if answer != nil {
		return answer(ctx, q)
	}
	return s.give(leaf(s.t, q.id, time.Duration(q.validity)*time.Second), csr.PublicKey), nil
}

// folder is a folder of files, as a mounted secret has them.
type folder struct {
	t   *testing.T
	dir string
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

// write puts a file in place by a rename, as the kubelet does.
func (f folder) write(name, text string) string {
	f.t.Helper()
	tmp := f.path("." + name)
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(tmp, f.path(name)); err != nil {
		f.t.Fatal(err)
	}
	return f.path(name)
}

// journal is a log that a test can read.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// node is an issuer, and what belongs to it.
type node struct {
	*Issuer
	files folder
	log   *journal
}

// newNode makes the issuer of a node that knows a CA.
func newNode(t *testing.T, s *istio, change func(*Options)) *node {
	t.Helper()
	n := &node{files: folder{t, t.TempDir()}, log: &journal{}}
	o := Options{Target: s.addr, ServerName: caName, ClusterID: cluster,
		RootsFile: n.files.write("root-cert.pem", s.root.pem), TokenFile: n.files.write("token", "the.node.token\n"),
		Log: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&o)
	}
	var err error
	if n.Issuer, err = New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Close()
		noneLeft(t)
	})
	return n
}

// namespace is a credential with these accounts.
func (n *node) namespace(t *testing.T, ns string, accounts ...string) *Credential {
	t.Helper()
	c, err := n.Namespace(ns)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetAccounts(accounts); err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// wait waits for a certificate.
func wait(t *testing.T, c *Credential) *tls.Certificate {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	cert, err := c.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// contains tells whether a text has all parts.
func contains(text string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) })
}

// noneLeft checks that no goroutine of the package or of its connections is left.
func noneLeft(t *testing.T) {
	t.Helper()
	buf := make([]byte, 8<<20)
	own := func() string {
		for _, g := range bytes.Split(buf[:runtime.Stack(buf, true)], []byte("\n\n")) {
			for _, f := range []string{"identity.(*Credential).", "identity.(*Issuer).", "grpc.(*addrConn)", "grpc.newClientStream", "transport.newHTTP2Client"} {
				if bytes.Contains(g, []byte(f)) {
					return string(g)
				}
			}
		}
		return ""
	}
	deadline := time.Now().Add(20 * time.Second)
	for own() != "" {
		if time.Now().After(deadline) {
			t.Errorf("a goroutine is left:\n%s", own())
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}
