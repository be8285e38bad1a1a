// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/helper/pods/plan"
	"kmesh/helper/publish"
	"kmesh/helper/resolve"
	"kmesh/helper/scopes"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// Scopes says whose views of the mesh the helper asks for.
type Scopes string

// The values of Options.Scopes; "" is the first.
const (
	// OneScope: one view, the one that the configured node gets, is every pod's.
	OneScope Scopes = "one"
	// ScopePerPods: a view for each (namespace, labels, service account) of this node's
	// pods, asked for as one of them.
	ScopePerPods Scopes = "pods"
)

// makeScopes makes what follows the sources.
func (c *Controller) makeScopes() error {
	o := c.opts
	switch o.Unenforceable {
	case "", ServeUnenforceable, RefuseUnenforceable:
	default:
		return fmt.Errorf("--unenforceable-actions is %q: use %s or %s", o.Unenforceable, ServeUnenforceable, RefuseUnenforceable)
	}
	opts := scopes.Options{
		Default:   func() (xds.Source, error) { return source(o) },
		Pods:      c.scopedPods,
		Heard:     c.heard,
		Installed: c.pub.ScopeIDs,
		Name:      publish.ScopeName,
		Assign:    c.assign,
		Publish:   c.publish,
		Most:      o.MaxScopes,
		StateDir:  o.StateDir, KeepLastGood: o.XDSDir == "", Others: []string{workloadsFile},
		Log: o.Log,
	}
	switch o.Scopes {
	case "", OneScope:
		// What is wrong with the options is said at once.
		if _, err := source(o); err != nil {
			return err
		}
	case ScopePerPods:
		if err := c.perPods(&opts); err != nil {
			return err
		}
	default:
		return fmt.Errorf("--xds-scopes is %q: use %s or %s", o.Scopes, OneScope, ScopePerPods)
	}
	// What an earlier helper published goes on serving until all of the first
	// snapshot is good: from files, an admin will see to that; a server is given
	// some time.
	var hold time.Duration
	_, live := c.pub.Live()
	if opts.Inherited = live || c.others; opts.Inherited {
		hold = 30 * time.Second
		if o.XDSDir != "" {
			hold = -1
		}
	}
	if o.WorkloadAPI || o.Scopes == ScopePerPods {
		if err := c.makeWorkloads(&opts); err != nil {
			return err
		}
	}
	c.names = resolve.New(resolve.Options{Log: o.Log})
	opts.Resolve = c.names.Watch
	opts.Store = snapshot.Options{HoldFirst: hold, RefuseActions: o.Unenforceable == RefuseUnenforceable, Logger: o.Log}
	c.scopes = scopes.New(opts)
	return nil
}

// perPods are the options of many scopes.
func (c *Controller) perPods(opts *scopes.Options) error {
	if c.opts.XDSDir != "" {
		return errors.New("--xds-scopes pods is about a server, and --xds-dir is given: leave one out")
	}
	if c.opts.MaxScopes < 1 {
		return fmt.Errorf("--max-scopes is %d: give 1 or more", c.opts.MaxScopes)
	}
	if len(c.opts.XDSServers) == 0 {
		return errors.New("--xds-scopes pods: no server to ask: give --xds-server HOST:PORT")
	}
	opts.Open = func(key mesh.ScopeKey) (xds.Source, error) {
		server := c.opts.server()
		server.Node = c.opts.scopeNode(key)
		server.Logger = c.opts.Log.With("scope", publish.ScopeName(key))
		return xds.NewServer(server)
	}
	if c.opts.Server.Token == "" {
		return nil // whoever is asked believes what is announced
	}
	ids, err := newIdentities(c.opts)
	if err != nil {
		return asFlag(err)
	}
	c.ids = ids
	opts.Open, opts.Accounts, opts.Refused = ids.open, ids.accounts, ids.refused
	return nil
}

// scopeNode is what is announced for a scope: a client of that namespace with those
// labels. Its name is made up: a control plane that does not know the pod goes by the
// labels that are announced, and a view must not depend on the life of one of its pods.
func (o Options) scopeNode(key mesh.ScopeKey) *corev3.Node {
	sum := sha256.Sum256([]byte(publish.ScopeName(key)))
	ip := o.NodeIP
	if ip == "" {
		ip = "127.0.0.1"
	}
	n := o.node(fmt.Sprintf("sidecar~%s~kmesh-%s.%s~%s.svc.cluster.local", ip, hex.EncodeToString(sum[:5]), key.Namespace, key.Namespace), o.NodeMetadata)
	if n.Metadata == nil {
		n.Metadata = &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	}
	labels := &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	for k, v := range scopes.LabelsOf(key) {
		labels.Fields[k] = structpb.NewStringValue(v)
	}
	delete(n.Metadata.Fields, "SERVICE_ACCOUNT") // the certificate may be another account's of the namespace
	n.Metadata.Fields["NAMESPACE"] = structpb.NewStringValue(key.Namespace)
	n.Metadata.Fields["LABELS"] = structpb.NewStructValue(labels)
	return n
}

// scopedPods are the pods of this node that are governed, or are to be, with the scopes
// that they ask for and have.
func (c *Controller) scopedPods(ctx context.Context) ([]scopes.Pod, bool) {
	known, err := c.node.Known(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.opts.Log.Error("pods keep their scopes, trying again later", "err", err)
		}
		return nil, false
	}
	var view *plan.View
	if c.cluster != nil {
		if v, ok := c.cluster.View(); ok {
			view = &v
		}
	}
	return scopes.PodsOf(known, view, c.own), true
}

// heard says whether the API server has said which pods there are, if one is asked.
func (c *Controller) heard() bool {
	if c.cluster == nil {
		return true
	}
	_, ok := c.cluster.View()
	return ok
}

// assign gives the pod of a network namespace a scope, for what it opens from now on.
func (c *Controller) assign(space uint64, scope uint32) error {
	pods, err := bpf.OpenPods(c.opts.BPFFS)
	if err != nil {
		return err
	}
	defer pods.Close()
	return pods.SetScope(space, scope)
}
