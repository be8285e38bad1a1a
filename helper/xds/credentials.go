// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// TLS says how a server is recognised, and how it recognises us. The files are read
// anew for every connection, so that they can be exchanged at any time; what cannot
// be used then leaves the last good content in use.
type TLS struct {
	// RootsFile holds the certificates (PEM) that a server's must lead to.
	RootsFile string
	// CertFile and KeyFile are the client's certificate and key (PEM): both or none.
	CertFile, KeyFile string
	// Certificate gives the client's certificate in their place, if it is not nil. It is
	// asked for every connection; while it gives an error there is none.
	Certificate func() (*tls.Certificate, error)
	// ServerName is the name that the server's certificate must have; the target's
	// host if empty.
	ServerName string
}

// check tells what is wrong with the options.
func (t *TLS) check() error {
	switch {
	case t == nil:
		return nil
	case t.RootsFile == "":
		return &OptionError{"TLS.RootsFile", errors.New("is empty: give the file with the certificates that the server's must lead to")}
	case t.Certificate != nil && (t.CertFile != "" || t.KeyFile != ""):
		return &OptionError{"TLS.Certificate", errors.New("is given beside TLS.CertFile or TLS.KeyFile: give the files or the function")}
	case t.CertFile == "" && t.KeyFile != "":
		return &OptionError{"TLS.CertFile", errors.New("is empty, and there is a key: give both or none")}
	case t.CertFile != "" && t.KeyFile == "":
		return &OptionError{"TLS.KeyFile", errors.New("is empty, and there is a certificate: give both or none")}
	}
	return nil
}

// transport makes TLS connections with what is in the files at that time.
type transport struct {
	opts TLS
	log  *slog.Logger

	mu    sync.Mutex
	roots *x509.CertPool
	cert  *tls.Certificate
}

var _ credentials.TransportCredentials = (*transport)(nil)

// newTransport reads the files once, so that wrong ones are found at the start.
func newTransport(opts TLS, log *slog.Logger) (*transport, error) {
	t := &transport{opts: opts, log: log}
	var err error
	if t.roots, err = readRoots(opts.RootsFile); err != nil {
		return nil, &OptionError{"TLS.RootsFile", err}
	}
	if opts.CertFile != "" {
		if t.cert, err = readPair(opts.CertFile, opts.KeyFile); err != nil {
			return nil, &OptionError{"TLS.CertFile", err}
		}
	}
	return t, nil
}

// config is what holds for one connection.
func (t *transport) config() *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	if roots, err := readRoots(t.opts.RootsFile); err != nil {
		t.log.Error("the roots of the server's certificate cannot be read, the last good ones stay", "err", err)
	} else {
		t.roots = roots
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: t.roots, ServerName: t.opts.ServerName}
	if t.opts.CertFile != "" {
		if cert, err := readPair(t.opts.CertFile, t.opts.KeyFile); err != nil {
			t.log.Error("the client certificate cannot be read, the last good one stays", "err", err)
		} else {
			t.cert = cert
		}
		cfg.Certificates = []tls.Certificate{*t.cert}
	}
	return cfg
}

// ClientHandshake implements credentials.TransportCredentials.
func (t *transport) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg := t.config()
	if t.opts.Certificate != nil {
		// Also for a server that would take us without one: as nobody we would be told
		// something else. And what it says about authorities does not choose: a server
		// that does not know ours refuses it aloud.
		cert, err := t.opts.Certificate()
		if err == nil && cert == nil {
			err = errors.New("there is none")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the client certificate: %w", err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials.
func (t *transport) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are a client's credentials")
}

// Info implements credentials.TransportCredentials.
func (t *transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials: what was read last is shared.
func (t *transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials.
func (t *transport) OverrideServerName(string) error {
	return errors.New("the server's name is an option")
}

// readSecret reads a file of bounded size. Its errors never hold content.
func readSecret(path string) ([]byte, error) {
	data, err := readFile(path)
	if errors.Is(err, errNotRegular) || errors.Is(err, errTooBig) {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return data, err
}

// readRoots reads certificates.
func readRoots(path string) (*x509.CertPool, error) {
	data, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s has no certificate in it: give one or more in PEM", path)
	}
	return pool, nil
}

// readPair reads a certificate and its key.
func readPair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := readSecret(certFile)
	if err != nil {
		return nil, err
	}
	key, err := readSecret(keyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w: give a certificate and its key in PEM", certFile, keyFile, err)
	}
	return &pair, nil
}

// token is a file with a bearer token. It is read for every stream: who gives it out
// renews it in place. It stands in no message and in no log.
type token struct{ path string }

var _ credentials.PerRPCCredentials = token{}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := t.read()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + text}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t token) RequireTransportSecurity() bool { return true }

// read returns the token.
func (t token) read() (string, error) {
	data, err := readSecret(t.path)
	if err != nil {
		return "", err
	}
	text, err := parseToken(data)
	if err != nil {
		return "", fmt.Errorf("%s %w", t.path, err)
	}
	return text, nil
}

// parseToken takes a token out of a file's content: the line end is not part of it.
func parseToken(data []byte) (string, error) {
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return "", errors.New("is empty: write a token into it")
	}
	for _, c := range data {
		if c <= ' ' || c >= 0x7f {
			return "", errors.New("holds no token: a token has neither spaces nor control characters, and is ASCII")
		}
	}
	return string(data), nil
}
