// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"maps"
	"sync"

	"kmesh/helper/identity"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/helper/xds"
)

// identities are what scopes are asked for as: a certificate and a connection for each
// namespace, and a stream for each scope.
type identities struct {
	opts   Options
	issuer *identity.Issuer

	mu     sync.Mutex
	spaces map[string]*space
}

// space is a namespace.
type space struct {
	cred *identity.Credential
	pool *xds.Pool
}

func newIdentities(o Options) (*identities, error) {
	issuer, err := identity.New(identity.Options{
		Target: cmp.Or(o.CA, o.XDSServers[0]), RootsFile: o.Server.Roots, ServerName: o.Server.ServerName, TokenFile: o.Server.Token,
		ClusterID: o.Server.ClusterID, TrustDomain: o.TrustDomain, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	return &identities{opts: o, issuer: issuer, spaces: make(map[string]*space)}, nil
}

// of returns what a namespace has.
func (i *identities) of(namespace string) (*space, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s := i.spaces[namespace]; s != nil {
		return s, nil
	}
	cred, err := i.issuer.Namespace(namespace)
	if err != nil {
		return nil, err
	}
	o := i.opts.server()
	pool, err := xds.NewPool(xds.PoolOptions{
		TLS:    &xds.TLS{RootsFile: o.TLS.RootsFile, ServerName: o.TLS.ServerName, Certificate: cred.Certificate},
		Logger: o.Logger,
	})
	if err != nil {
		return nil, err
	}
	i.spaces[namespace] = &space{cred, pool}
	return i.spaces[namespace], nil
}

// accounts tells which accounts have pods on this node.
func (i *identities) accounts(now map[string][]string) {
	i.mu.Lock()
	all := make(map[string][]string, len(now))
	for namespace := range i.spaces {
		all[namespace] = nil
	}
	i.mu.Unlock()
	maps.Copy(all, now)
	for namespace, list := range all {
		s, err := i.of(namespace)
		if err == nil {
			err = s.cred.SetAccounts(list)
		}
		if err != nil {
			i.opts.Log.Error("pods get no view of their own", "namespace", namespace, "err", err)
		}
	}
}

// refused says why the CA gives no certificates at all.
func (i *identities) refused() string {
	why := ""
	for _, s := range i.issuer.Status() {
		if s.Account != "" {
			return ""
		}
		if s.Refused {
			why = s.Problem
		}
	}
	return why
}

// open makes the source of a scope.
func (i *identities) open(key mesh.ScopeKey) (xds.Source, error) {
	s, err := i.of(key.Namespace)
	if err != nil {
		return nil, err
	}
	o := i.opts.server()
	o.Node, o.Pool, o.TLS, o.TokenFile = i.opts.scopeNode(key), s.pool, nil, ""
	o.Logger = i.opts.Log.With("scope", publish.ScopeName(key))
	server, err := xds.NewServer(o)
	if err != nil {
		return nil, err
	}
	return &identified{server, s.cred}, nil
}

// identified is a source that begins when there is a certificate: to be refused without
// one would only make it wait longer.
type identified struct {
	*xds.Server
	cred *identity.Credential
}

// Run implements xds.Source.
func (s *identified) Run(ctx context.Context, c xds.Consumer) error {
	if err := s.cred.Wait(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return s.Server.Run(ctx, c)
}

// Status implements xds.Source: until there is a certificate, why there is none.
func (s *identified) Status() xds.Status {
	out := s.Server.Status()
	if id := s.cred.Status(); id.Problem != "" {
		out.Problems = append(out.Problems, mesh.Verdict{Source: "the CA", Resource: id.Namespace, Class: mesh.Invalid, Message: id.Problem})
	}
	return out
}
