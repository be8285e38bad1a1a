// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"kmesh/test/node"
)

//go:embed programs
var programs embed.FS

// Ports of servers, in each one's own pod.
const (
	mainPort   = 8080
	idlePort   = 8082 // that ends idle connections after idleTime
	threePort  = 8083 // that ends connections after three requests
	tlsPort    = 8443
	behindPort = 9000 // behind HAProxy
	h2cPort    = 8090
	grpcPort   = 8091
	smtpPort   = 25
	redisPort  = 6379
)

const idleTime = 100 * time.Millisecond

// loopback is where the server behind HAProxy listens.
var loopback = netip.MustParseAddr("127.0.0.1")

// content is what the files of servers have, by name.
var content = func() map[string][]byte {
	random := mrand.NewChaCha8([32]byte{1})
	out := map[string][]byte{"": {}}
	for _, file := range []struct {
		name string
		size int
	}{{"small", 200}, {"page", 20_000}, {"big", 3_000_000}} {
		out[file.name] = make([]byte, file.size)
		_, _ = random.Read(out[file.name])
	}
	return out
}()

// serveAll starts the servers and makes the services that lead to them.
func (b *bed) serveAll() {
	b.Helper()
	for _, dir := range []string{"file", "put"} {
		if err := os.Mkdir(filepath.Join(b.dir, dir), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for name, bytes := range content {
		if name != "" {
			b.write("file/"+name, bytes)
		}
	}
	b.certificate()
	fill := struct {
		Dir                            string
		Port, Idle, Three, TLS, Behind int
		IdleTime                       time.Duration
	}{b.dir, mainPort, idlePort, threePort, tlsPort, behindPort, idleTime}
	for _, name := range []string{"nginx.conf", "haproxy.cfg"} {
		var text bytes.Buffer
		if err := template.Must(template.ParseFS(programs, "programs/"+name)).Execute(&text, fill); err != nil {
			b.Fatal(err)
		}
		b.write(name, text.Bytes())
	}
	for _, name := range []string{"server.mjs", "client.mjs", "client.py", "wrk.lua"} {
		b.place(name)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(b.dir, name) }
	for _, s := range []struct {
		pod   string
		args  []string
		ports []uint16
	}{
		{"nginx", []string{"nginx", "-c", file("nginx.conf")}, []uint16{mainPort, idlePort, threePort, tlsPort}},
		{"haproxy", []string{self, "serve", "haproxy", b.dir, netip.AddrPortFrom(loopback, behindPort).String()}, []uint16{behindPort}},
		{"haproxy", []string{"haproxy", "-db", "-q", "-f", file("haproxy.cfg")}, []uint16{mainPort, idlePort}},
		{"go", []string{self, "serve", "go", b.dir, ""}, []uint16{mainPort, idlePort, tlsPort, h2cPort, grpcPort, smtpPort}},
		{"node", []string{"node", file("server.mjs"), b.dir, strconv.Itoa(mainPort), strconv.Itoa(idlePort), strconv.Itoa(int(idleTime.Milliseconds()))}, []uint16{mainPort, idlePort}},
		{"redis", []string{"redis-server", "--port", strconv.Itoa(redisPort), "--save", "", "--protected-mode", "no", "--bind", "0.0.0.0", "::", "--dir", b.dir}, []uint16{redisPort}},
	} {
		p := b.pods[s.pod]
		if p == nil {
			p = b.pod(s.pod, nil)
			b.pods[s.pod] = p
		}
		addrs := []netip.Addr{p.IP4, p.IP6}
		if s.ports[0] == behindPort {
			addrs = []netip.Addr{loopback}
		}
		b.background(p, s.args, addrs, s.ports)
	}
}

// place puts a program where pods find it.
func (b *bed) place(name string) {
	b.Helper()
	text, err := programs.ReadFile("programs/" + name)
	if err != nil {
		b.Fatal(err)
	}
	b.write(name, text)
}

// write makes a file that all pods see.
func (b *bed) write(name string, text []byte) {
	b.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), text, 0o600); err != nil {
		b.Fatal(err)
	}
}

// command is one whose environment has no proxy in it.
func command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd
}

// background starts a server, which lives as long as its pod, and waits until it listens.
func (b *bed) background(p *node.Pod, args []string, addrs []netip.Addr, ports []uint16) {
	b.Helper()
	// A file, which a process that this one starts may keep open.
	said, err := os.CreateTemp(b.dir, "said-")
	if err != nil {
		b.Fatal(err)
	}
	defer said.Close()
	cmd := command(context.WithoutCancel(b.ctx), args)
	cmd.Stdout, cmd.Stderr = said, said
	proc, err := p.StartCmd(cmd)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if text, err := os.ReadFile(said.Name()); b.Failed() && len(text) > 0 {
			b.Logf("%s said: %s (%v)", args, text, err)
		}
	})
	for _, port := range ports {
		for _, ip := range addrs {
			eventually(b, fmt.Sprintf("%s at port %d", args, port), func() error {
				select {
				case <-proc.Done():
					b.Fatalf("%s ended: %v", args, proc.Wait())
				default:
				}
				return p.Do(func() error {
					c, err := net.DialTimeout("tcp", netip.AddrPortFrom(ip, port).String(), time.Second)
					if err == nil {
						c.Close()
					}
					return err
				})
			}, func(err error) bool { return err == nil })
		}
	}
}

// certificate makes one that nobody has signed.
func (b *bed) certificate() {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.Fatal(err)
	}
	b.write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	b.write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}
