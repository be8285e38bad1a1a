// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"kmesh/helper/identity/ca"
)

const (
	// askWithin bounds one request, its connection included.
	askWithin = 10 * time.Second
	// maxReason bounds what is passed on of another's words.
	maxReason = 500
)

// bearer is what says who asks: the token, and of which cluster it is. It goes over
// TLS only.
type bearer struct{ token, cluster string }

var _ credentials.PerRPCCredentials = bearer{}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token, "clusterid": b.cluster}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (b bearer) RequireTransportSecurity() bool { return true }

// ask gets a certificate in the name of an account, with a key of its own. The
// connection is new and shows no certificate: one would count in the token's place, and
// would not tell the CA which node asks.
func (i *Issuer) ask(parent context.Context, ns, account string) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(parent, askWithin)
	defer cancel()
	token, err := readToken(i.opts.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("the node's token: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	id := i.id(ns, account)
	req := &ca.IstioCertificateRequest{
		Csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		ValidityDuration: int64(i.opts.TTL / time.Second),
		Metadata:         &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(id)}},
	}
	roots := i.freshRoots()
	conn, err := grpc.NewClient(i.opts.Target, grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: i.opts.ServerName})))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", i.opts.Target, err)
	}
	defer conn.Close()
	resp, err := ca.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, req,
		grpc.PerRPCCredentials(bearer{token, i.opts.ClusterID}))
	if err != nil {
		return nil, refusal(err, token)
	}
	cert, err := checkAnswer(resp.GetCertChain(), key, id, roots, time.Now())
	if err != nil {
		return nil, fmt.Errorf("the CA's answer is not used: %w", err)
	}
	return cert, nil
}

// refusal is an error of the CA or of the way to it, with what to do about it. Nobody
// keeps a server from repeating the token that it was shown, so that is cut out.
func refusal(err error, token string) error {
	st := status.Convert(err)
	text := strings.ReplaceAll(st.Message(), token, "(the token)")
	text = clip(text)
	text = st.Code().String() + ": " + text
	if r := remedy(st.Code(), text); r != "" {
		text += " (" + r + ")"
	}
	return &answer{"the CA: " + text, impersonation(st.Code(), st.Message())}
}

// answer is a refusal by the CA.
type answer struct {
	text string
	// trust: it does not let this node ask in another's name.
	trust bool
}

// Error implements error.
func (a *answer) Error() string { return a.text }

// impersonation says whether what is refused is to ask in another's name.
func impersonation(code codes.Code, text string) bool {
	return code == codes.Unauthenticated && strings.Contains(text, "impersonation")
}

// clip makes another's words fit for a line of a log.
func clip(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "..."
	}
	return text
}

// remedy is what to do about a refusal that a setting would avoid.
func remedy(code codes.Code, text string) string {
	switch {
	case impersonation(code, text):
		return "set CA_TRUSTED_NODE_ACCOUNTS of istiod to include this helper's service account; if it does, istiod's log says more: " +
			"its cluster has another name than ClusterID, or it knows of no pod of the account on this node"
	case code == codes.Unauthenticated:
		return "look at TokenFile: the token must be for the CA's audience, istio-ca, and of a pod that is there"
	case code == codes.InvalidArgument && strings.Contains(text, "TTL"):
		return "set TTL to less"
	case code == codes.Unimplemented:
		return "Target is no Istio CA: give istiod's port with TLS, 15012"
	case strings.Contains(text, "x509:"):
		return "look at RootsFile and ServerName"
	}
	return ""
}
