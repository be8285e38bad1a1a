// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// checkAnswer makes a certificate of what the CA has answered, if that is what was
// asked for: our key, this identity and no other, good now, and of the mesh's roots.
func checkAnswer(answer []string, key *ecdsa.PrivateKey, id string, roots *x509.CertPool, now time.Time) (*tls.Certificate, error) {
	chain, err := parseChain(answer)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !key.PublicKey.Equal(public) {
		return nil, errors.New("the certificate is for another key than ours")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
		return nil, fmt.Errorf("the certificate is for %s, asked for was %s", clip(fmt.Sprint(leaf.URIs)), id)
	}
	switch {
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("the certificate has expired at %s", leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("the certificate is good from %s only: compare the CA's clock with this node's", leaf.NotBefore.Format(time.RFC3339))
	}
	between := x509.NewCertPool()
	cert := &tls.Certificate{PrivateKey: key, Leaf: leaf, Certificate: [][]byte{leaf.Raw}}
	for _, c := range chain[1:] {
		// A root is what the other side has: it is not sent, and what the answer says
		// about it is not believed.
		if bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil {
			continue
		}
		between.AddCert(c)
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil, fmt.Errorf("the certificate is not one of a client that leads to RootsFile: %w", err)
	}
	return cert, nil
}

// parseChain reads certificates in PEM, one or more in a string. There is at least one.
func parseChain(answer []string) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for n, text := range answer {
		for rest := bytes.TrimSpace([]byte(text)); len(rest) > 0; rest = bytes.TrimSpace(rest) {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("cert_chain[%d] is no certificate in PEM", n)
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("cert_chain[%d]: %w", n, err)
			}
			chain = append(chain, cert)
		}
	}
	if len(chain) == 0 {
		return nil, errors.New("it has no certificate in it")
	}
	return chain, nil
}
