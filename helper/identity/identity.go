// SPDX-License-Identifier: Apache-2.0

// Package identity gets certificates for workloads of this node from an Istio CA, in
// their names and with the node's token, so that the helper can ask the control plane
// for what these workloads may see: one certificate for each namespace.
//
// The invariant: a certificate is held only as long as a pod of its account is on this
// node, and every one is asked for anew, with the node's token and a key of its own. A
// certificate could renew itself without the token, and would then outlive the pod that
// it was given for; so nothing here ever does that, and one whose pod has gone is
// forgotten with its key. The token stands in no log and in no error.
package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	defaultTTL = time.Hour
	// maxTTL is the longest that Istio's CA gives unless it is told to give more.
	maxTTL             = 90 * 24 * time.Hour
	defaultTrustDomain = "cluster.local"
	// The first refusals are those of an informer that has not seen a new pod yet.
	backoffBase, backoffMax = 100 * time.Millisecond, 15 * time.Second
)

// Options configure an Issuer.
type Options struct {
	// Target is HOST:PORT of the CA.
	Target string
	// RootsFile holds the certificates (PEM) that the CA's own and those that it gives
	// must lead to. It is read anew for every request; what cannot be used then leaves
	// the last good content in use.
	RootsFile string
	// ServerName is the name that the CA's certificate must have; the target's host if
	// empty.
	ServerName string
	// TokenFile holds the node's bearer token, bound to the helper's pod; it is read anew
	// for every request.
	TokenFile string
	// ClusterID is what the CA knows this cluster as ("Kubernetes"). Without it Istio's
	// allows nobody to ask in another's name.
	ClusterID string
	// TrustDomain is the mesh's; cluster.local if empty. Every identity that is asked for
	// is one of it.
	TrustDomain string
	// TTL is how long a certificate is asked to be good for; an hour if zero.
	TTL time.Duration
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// OptionError is an option that cannot be used.
type OptionError struct {
	Option string // the field of Options
	Err    error
}

// Error implements error.
func (e *OptionError) Error() string { return "identity: " + e.Option + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *OptionError) Unwrap() error { return e.Err }

// complete checks the options and fills in what was left out.
func (o *Options) complete() error {
	bad := func(option, format string, args ...any) error {
		return &OptionError{option, fmt.Errorf(format, args...)}
	}
	host, port, err := net.SplitHostPort(o.Target)
	switch {
	case err != nil:
		return bad("Target", "%q: %w: give HOST:PORT of the CA", o.Target, err)
	case host == "" || port == "" || strings.ContainsAny(o.Target, "/ "):
		return bad("Target", "%q has no host, no port, or more than those: give HOST:PORT of the CA", o.Target)
	case o.RootsFile == "":
		return bad("RootsFile", "is empty: give the file with the certificates that the CA's must lead to")
	case o.TokenFile == "":
		return bad("TokenFile", "is empty: give the file with the node's token")
	case o.ClusterID == "":
		return bad("ClusterID", "is empty: give what the CA knows this cluster as, such as Kubernetes")
	case !printable(o.ClusterID):
		return bad("ClusterID", "%q has spaces or control characters, or is not ASCII: give the CA's word for this cluster", o.ClusterID)
	}
	if o.TrustDomain == "" {
		o.TrustDomain = defaultTrustDomain
	}
	if !isTrustDomain(o.TrustDomain) {
		return bad("TrustDomain", "%q is none: it has small letters, digits, dots, hyphens and underscores only, and at most 255 of them", o.TrustDomain)
	}
	switch {
	case o.TTL == 0:
		o.TTL = defaultTTL
	case o.TTL < time.Second:
		return bad("TTL", "%v is too short: give a second or more", o.TTL)
	case o.TTL > maxTTL:
		return bad("TTL", "%v is longer than the %v that the CA gives: give less", o.TTL, maxTTL)
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return nil
}

// ErrClosed says that there are no certificates any more because of Close.
var ErrClosed = errors.New("closed")

// Issuer gets the certificates of one node.
type Issuer struct {
	opts Options
	log  *slog.Logger

	mu     sync.Mutex
	roots  *x509.CertPool // the last good ones
	creds  map[string]*Credential
	closed bool
}

// New makes an issuer. It reads the roots and the token once, so that wrong ones are
// found at the start, and does not ask the CA. What is wrong with the options is an
// *OptionError.
func New(opts Options) (*Issuer, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	roots, err := readRoots(opts.RootsFile)
	if err != nil {
		return nil, &OptionError{"RootsFile", err}
	}
	if _, err := readToken(opts.TokenFile); err != nil {
		return nil, &OptionError{"TokenFile", err}
	}
	return &Issuer{opts: opts, log: opts.Log.With("ca", opts.Target), roots: roots, creds: map[string]*Credential{}}, nil
}

// Namespace returns the credential of a namespace, which asks for nothing before it is
// told of accounts. It is the same one until it is closed.
func (i *Issuer) Namespace(ns string) (*Credential, error) {
	if !isLabel(ns) {
		return nil, fmt.Errorf("identity: %q is no name of a namespace: give a DNS label", ns)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil, fmt.Errorf("identity: %w", ErrClosed)
	}
	if c := i.creds[ns]; c != nil {
		return c, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Credential{issuer: i, namespace: ns, log: i.log.With("namespace", ns),
		cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1), change: make(chan struct{})}
	i.creds[ns] = c
	go c.run(ctx)
	return c, nil
}

// Status tells of every credential, in order of the namespaces.
func (i *Issuer) Status() []Status {
	i.mu.Lock()
	creds := slices.Collect(maps.Values(i.creds))
	i.mu.Unlock()
	var out []Status
	for _, c := range creds {
		out = append(out, c.Status())
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Namespace, b.Namespace) })
	return out
}

// Close closes all credentials.
func (i *Issuer) Close() {
	i.mu.Lock()
	i.closed = true
	creds := slices.Collect(maps.Values(i.creds))
	i.mu.Unlock()
	for _, c := range creds {
		c.Close()
	}
}

// forget takes a closed credential out.
func (i *Issuer) forget(c *Credential) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.creds[c.namespace] == c {
		delete(i.creds, c.namespace)
	}
}

// freshRoots reads the roots.
func (i *Issuer) freshRoots() *x509.CertPool {
	roots, err := readRoots(i.opts.RootsFile)
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil {
		i.log.Error("the roots of the CA cannot be read, the last good ones stay", "err", err)
		return i.roots
	}
	i.roots = roots
	return roots
}

// id is the identity of an account.
func (i *Issuer) id(ns, account string) string {
	return "spiffe://" + i.opts.TrustDomain + "/ns/" + ns + "/sa/" + account
}
