// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// authority is a certificate authority of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a certificate for a name, and its key.
func (a *authority) issue(name string) (cert, key []byte) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// secrets is a folder of files, as a mounted secret has them.
type secrets struct {
	t   *testing.T
	dir string
}

func (s secrets) path(name string) string { return filepath.Join(s.dir, name) }

func (s secrets) write(name string, data []byte) string {
	s.t.Helper()
	write(s.t, s.dir, name, string(data))
	return s.path(name)
}

// guarded is a stage that speaks TLS; swap exchanges its certificate and the clients'
// authority.
type guarded struct {
	*stage
	mu    sync.Mutex
	cfg   *tls.Config
	peers []string // the names of the clients' certificates
}

func (g *guarded) swap(a *authority, name string, clients *authority) {
	cert, key := a.issue(name)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		a.t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	if clients != nil {
		cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		cfg.ClientCAs.AddCert(clients.cert)
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.peers = append(g.peers, cs.PeerCertificates[0].Subject.CommonName)
			return nil
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cfg = cfg
}

// serve starts the stage at an address.
func (g *guarded) serve(t *testing.T, addr string) {
	g.stage = newStage(t, addr, grpc.Creds(credentials.NewTLS(&tls.Config{NextProtos: []string{"h2"}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.cfg, nil
	}})))
}

// TestDutyTLS: the server is verified, by name too; roots and the client's
// certificate are read anew for every connection, and the last good ones stay while
// the files are of no use.
func TestDutyTLS(t *testing.T) {
	old, young, clients, younger := newAuthority(t, "old"), newAuthority(t, "young"), newAuthority(t, "clients"), newAuthority(t, "younger clients")
	dir := secrets{t, t.TempDir()}
	roots := dir.write("roots.pem", old.pem)
	cert, key := clients.issue("node-1")
	dir.write("cert.pem", cert)
	dir.write("key.pem", key)

	g := &guarded{}
	g.swap(old, "control.example", clients)
	g.serve(t, "")
	options := func(o *ServerOptions) {
		o.TLS = &TLS{RootsFile: roots, CertFile: dir.path("cert.pem"), KeyFile: dir.path("key.pem"), ServerName: "control.example"}
	}
	s, r := client(t, Delta, options, g.addr), &recorder{}
	run(t, s, r)
	enter(t, g.delta).say(deltaSay(t, ClusterType, "1", edsCluster("a")))
	eventually(t, "serves", func() bool { return r.get("Cluster") == "a" })

	again := func() {
		t.Helper()
		g.grpc.Stop()
		g.serve(t, g.addr)
	}
	// The server's authority changes: not trusted, until the file has changed.
	g.swap(young, "control.example", clients)
	again()
	eventually(t, "the certificate is refused", func() bool { return contains(problem(s), "not connected", "certificate") })
	dir.write("roots.pem", []byte("half written"))
	eventually(t, "still", func() bool { return contains(problem(s), "not connected", "certificate") })
	dir.write("roots.pem", append(old.pem, young.pem...))
	enter(t, g.delta).say(deltaSay(t, ClusterType, "2", edsCluster("b")))
	eventually(t, "serves", func() bool { return r.get("Cluster") == "a,b" })

	// A file that is of no use later changes nothing.
	dir.write("roots.pem", nil)
	dir.write("key.pem", []byte("half written"))
	again()
	enter(t, g.delta).say(deltaSay(t, ClusterType, "3", edsCluster("c")))
	eventually(t, "serves on with the last good ones", func() bool { return r.get("Cluster") == "a,b,c" })

	// The client's certificate is exchanged.
	cert, key = younger.issue("node-2")
	dir.write("cert.pem", cert) // does not fit the key yet
	g.swap(young, "control.example", younger)
	again()
	eventually(t, "the old one is refused", func() bool { return contains(problem(s), "not connected") })
	dir.write("key.pem", key)
	enter(t, g.delta).say(deltaSay(t, ClusterType, "4", edsCluster("d")))
	eventually(t, "serves", func() bool { return r.get("Cluster") == "a,b,c,d" })
	g.mu.Lock()
	if last := g.peers[len(g.peers)-1]; g.peers[0] != "node-1" || last != "node-2" {
		t.Errorf("clients %q", g.peers)
	}
	g.mu.Unlock()

	// Another name is not the server that was meant, whoever vouches for it.
	g.swap(young, "other.example", younger)
	again()
	eventually(t, "the name is refused", func() bool { return contains(problem(s), "other.example", "control.example") })
}

// TestDutyToken: it is read for every stream, and stands in no log, no status and no
// error.
func TestDutyToken(t *testing.T) {
	ca := newAuthority(t, "ca")
	dir := secrets{t, t.TempDir()}
	roots := dir.write("roots.pem", ca.pem)
	const first, second = "first.secret.token", "second.secret.token"
	file := dir.write("token", []byte(first+"\n"))
	g := &guarded{}
	g.swap(ca, "127.0.0.1.example", nil)
	g.serve(t, "")
	var mu sync.Mutex
	var log bytes.Buffer
	options := func(o *ServerOptions) {
		o.TLS, o.TokenFile = &TLS{RootsFile: roots, ServerName: "127.0.0.1.example"}, file
		o.Headers = map[string]string{"clusterid": "Kubernetes"}
		o.Logger = slog.New(slog.NewTextHandler(&lockedWriter{mu: &mu, w: &log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s := client(t, Delta, options, g.addr)
	run(t, s, &recorder{})
	k := enter(t, g.delta)
	if got := k.head.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+first || k.head.Get("clusterid")[0] != "Kubernetes" {
		t.Errorf("head %v", k.head)
	}
	dir.write("token", []byte(second))
	k.say(deltaSay(t, ClusterType, "1"))
	k.hang(nil)
	k = enter(t, g.delta)
	if got := k.head.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+second {
		t.Errorf("head of the next stream %v", k.head)
	}
	dir.write("token", []byte("third secret token"))
	k.say(deltaSay(t, ClusterType, "2"))
	k.hang(nil)
	eventually(t, "the status says what is wrong", func() bool { return contains(problem(s), "not connected", file, "holds no token") })
	status := problem(s)
	dir.write("token", []byte(first))
	enter(t, g.delta)
	mu.Lock()
	defer mu.Unlock()
	if text := log.String() + status + problem(s); strings.Contains(text, "secret") || !strings.Contains(text, "again") && !strings.Contains(text, "stream ended") {
		t.Errorf("log and status: %s", text)
	}
}

// lockedWriter is a writer for several goroutines.
type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// TestOptions: what cannot be used is refused, with the option and what to do.
func TestOptions(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	dir := secrets{t, t.TempDir()}
	roots := dir.write("roots.pem", ca.pem)
	cert, _ := ca.issue("x")
	_, key := other.issue("x")
	dir.write("cert.pem", cert)
	dir.write("key.pem", key)
	dir.write("empty", nil)
	dir.write("spaces", []byte("a b"))
	if err := os.Mkdir(dir.path("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	withTLS := func(change func(*ServerOptions)) func(*ServerOptions) {
		return func(o *ServerOptions) {
			o.TLS = &TLS{RootsFile: roots}
			change(o)
		}
	}
	decode := Named(func() *corev3.Node { return &corev3.Node{} })
	pool, err := NewPool(PoolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	noCertificate := func() (*tls.Certificate, error) { return nil, errors.New("none") }
	tests := map[string]struct {
		change func(*ServerOptions)
		option string
		parts  []string
	}{
		"no target":      {func(o *ServerOptions) { o.Targets = nil }, "Targets", []string{"give HOST:PORT"}},
		"no port":        {func(o *ServerOptions) { o.Targets = []string{"a:1", "istiod"} }, "Targets", []string{`"istiod"`, "give HOST:PORT"}},
		"empty port":     {func(o *ServerOptions) { o.Targets = []string{"istiod:"} }, "Targets", []string{`"istiod:"`, "give HOST:PORT"}},
		"URL":            {func(o *ServerOptions) { o.Targets = []string{"http://istiod:15010"} }, "Targets", []string{"give HOST:PORT"}},
		"twice":          {func(o *ServerOptions) { o.Targets = []string{"a:1", "a:1"} }, "Targets", []string{`"a:1"`, "once"}},
		"protocol":       {func(o *ServerOptions) { o.Protocol = "rest" }, "Protocol", []string{`"rest"`, "delta", "sotw"}},
		"no node":        {func(o *ServerOptions) { o.Node = &corev3.Node{} }, "Node", []string{"empty"}},
		"token in clear": {func(o *ServerOptions) { o.TokenFile = "x" }, "TokenFile", []string{"plain text"}},
		"no roots":       {func(o *ServerOptions) { o.TLS = &TLS{CertFile: "x", KeyFile: "y"} }, "TLS.RootsFile", []string{"is empty"}},
		"key only":       {withTLS(func(o *ServerOptions) { o.TLS.KeyFile = "y" }), "TLS.CertFile", []string{"both or none"}},
		"cert only":      {withTLS(func(o *ServerOptions) { o.TLS.CertFile = "y" }), "TLS.KeyFile", []string{"both or none"}},
		"two certs":      {withTLS(func(o *ServerOptions) { o.TLS.CertFile, o.TLS.KeyFile, o.TLS.Certificate = "x", "y", noCertificate }), "TLS.Certificate", []string{"TLS.CertFile", "give the files or the function"}},
		"cert and key":   {withTLS(func(o *ServerOptions) { o.TLS.KeyFile, o.TLS.Certificate = "y", noCertificate }), "TLS.Certificate", []string{"TLS.KeyFile"}},
		"pool and TLS":   {withTLS(func(o *ServerOptions) { o.Pool = pool }), "TLS", []string{"the pool's", "NewPool"}},
		"pool and token": {func(o *ServerOptions) { o.Pool, o.TokenFile = pool, "x" }, "TokenFile", []string{"the pool's"}},
		"pool and alive": {func(o *ServerOptions) { o.Pool, o.Keepalive = pool, time.Second }, "Keepalive", []string{"the pool's"}},
		"pool and size":  {func(o *ServerOptions) { o.Pool, o.MaxMessage = pool, 1 }, "MaxMessage", []string{"the pool's"}},
		"type":           {func(o *ServerOptions) { o.Types = []Type{{URL: "x", Decode: decode}} }, "Types", []string{`"x"`}},
		"type twice":     {func(o *ServerOptions) { o.Types = append(EnvoyTypes(), EnvoyTypes()...) }, "Types", []string{"twice"}},
		"no decoder":     {func(o *ServerOptions) { o.Types = []Type{{URL: ClusterType}} }, "Types", []string{"no decoder"}},
		"by name only":   {func(o *ServerOptions) { o.Types = []Type{{URL: ClusterType, ByName: true, Decode: decode}} }, "Types", []string{"by name"}},

		"roots missing":  {withTLS(func(o *ServerOptions) { o.TLS.RootsFile = dir.path("none") }), "TLS.RootsFile", []string{dir.path("none"), "no such file"}},
		"roots a folder": {withTLS(func(o *ServerOptions) { o.TLS.RootsFile = dir.path("folder") }), "TLS.RootsFile", []string{dir.path("folder"), "not a regular file"}},
		"roots empty":    {withTLS(func(o *ServerOptions) { o.TLS.RootsFile = dir.path("empty") }), "TLS.RootsFile", []string{dir.path("empty"), "PEM"}},
		"pair":           {withTLS(func(o *ServerOptions) { o.TLS.CertFile, o.TLS.KeyFile = dir.path("cert.pem"), dir.path("key.pem") }), "TLS.CertFile", []string{dir.path("cert.pem"), "PEM"}},
		"token missing":  {withTLS(func(o *ServerOptions) { o.TokenFile = dir.path("none") }), "TokenFile", []string{dir.path("none")}},
		"token empty":    {withTLS(func(o *ServerOptions) { o.TokenFile = dir.path("empty") }), "TokenFile", []string{dir.path("empty"), "is empty"}},
		"token of words": {withTLS(func(o *ServerOptions) { o.TokenFile = dir.path("spaces") }), "TokenFile", []string{dir.path("spaces"), "no token"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o := ServerOptions{Targets: []string{"127.0.0.1:1"}, Node: &corev3.Node{Id: "n"}, Logger: quiet()}
			tc.change(&o)
			s, err := NewServer(o)
			if err == nil {
				err = s.Run(t.Context(), &recorder{}) // files are read then
			}
			var bad *OptionError
			if !errors.As(err, &bad) || bad.Option != tc.option || !contains(err.Error(), tc.parts...) {
				t.Errorf("error %v, want option %s with %q", err, tc.option, tc.parts)
			}
		})
	}
}

// FuzzToken: what is taken for a token can stand in a header.
func FuzzToken(f *testing.F) {
	for _, s := range []string{"", " ", "a.b.c\n", "a b", "\xff", "a\r\nauthorization: x", "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		text, err := parseToken(data)
		if (err == nil) != (text != "") {
			t.Fatalf("token %q, error %v", text, err)
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Fatalf("token %q", text)
		}
		if again, _ := parseToken([]byte(text)); again != text {
			t.Fatalf("token %q reads as %q", text, again)
		}
	})
}
