// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"kmesh/helper/resolve"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// ServerOptions say how to speak to the servers of Options.XDSServers.
type ServerOptions struct {
	// Protocol is "delta", also if empty, or "sotw".
	Protocol string
	// Roots is the file with the certificates that a server's must lead to; "" is plain
	// text.
	Roots string
	// ServerName is the name in the server's certificate; "" is the host of its address.
	ServerName string
	// Cert and Key are the files with the client's certificate and key.
	Cert, Key string
	// Token is the file with a bearer token.
	Token string
	// ClusterID is what the servers know this cluster as.
	ClusterID string
}

// flagOf are the flags of what the source calls its options.
var flagOf = map[string]string{
	"Targets":       "--xds-server",
	"Protocol":      "--xds-protocol",
	"Node":          "--node-id",
	"TLS.RootsFile": "--xds-roots",
	"TLS.CertFile":  "--xds-cert",
	"TLS.KeyFile":   "--xds-key",
	"TokenFile":     "--xds-token",
}

// asFlag says an option's error with the flag that the user knows.
func asFlag(err error) error {
	var bad *xds.OptionError
	if errors.As(err, &bad) && flagOf[bad.Option] != "" {
		return fmt.Errorf("%s: %w", flagOf[bad.Option], bad.Err)
	}
	return err
}

// source makes the source that the options name.
func source(o Options) (xds.Source, error) {
	switch {
	case o.XDSDir != "" && len(o.XDSServers) > 0:
		return nil, errors.New("both --xds-dir and --xds-server are given: choose one")
	case o.XDSDir != "":
		if flag := o.Server.given(); flag != "" {
			return nil, fmt.Errorf("%s is about a server, and --xds-dir is given: leave one out", flag)
		}
		return xds.NewFiles(xds.FilesOptions{Dir: o.XDSDir, Logger: o.Log}), nil
	case len(o.XDSServers) == 0:
		return nil, errors.New("no source of configuration: give --xds-dir DIR or --xds-server HOST:PORT")
	}
	s, err := xds.NewServer(o.server())
	if err != nil {
		return nil, asFlag(err)
	}
	return s, nil
}

// given returns the flag of one option that is about servers, "" if there is none.
func (o ServerOptions) given() string {
	for _, one := range []struct{ value, flag string }{
		{o.Roots, "--xds-roots"}, {o.ServerName, "--xds-server-name"}, {o.Cert, "--xds-cert"}, {o.Key, "--xds-key"},
		{o.Token, "--xds-token"}, {o.ClusterID, "--xds-cluster-id"},
	} {
		if one.value != "" {
			return one.flag
		}
	}
	return ""
}

// server are the options of the source that follows servers.
func (o Options) server() xds.ServerOptions {
	out := xds.ServerOptions{
		Targets:   o.XDSServers,
		Protocol:  xds.Protocol(o.Server.Protocol),
		TokenFile: o.Server.Token,
		Node:      &corev3.Node{Id: o.NodeID, UserAgentName: "kmesh", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: o.Version}},
		Logger:    o.Log,
	}
	if s := o.Server; s.Roots != "" || s.ServerName != "" || s.Cert != "" || s.Key != "" {
		out.TLS = &xds.TLS{RootsFile: s.Roots, CertFile: s.Cert, KeyFile: s.Key, ServerName: s.ServerName}
	}
	if id := o.Server.ClusterID; id != "" {
		out.Headers = map[string]string{"clusterid": id}
	}
	return out
}

// makeSource makes the source and the store that it fills.
func (c *Controller) makeSource() (err error) {
	switch c.opts.Unenforceable {
	case "", ServeUnenforceable, RefuseUnenforceable:
	default:
		return fmt.Errorf("--unenforceable-actions is %q: use %s or %s", c.opts.Unenforceable, ServeUnenforceable, RefuseUnenforceable)
	}
	if c.source, err = source(c.opts); err != nil {
		return err
	}
	// What an earlier helper published goes on serving until all of the first
	// snapshot is good: from files, an admin will see to that; a server is given
	// some time.
	var hold time.Duration
	if _, live := c.pub.Live(); live || c.others {
		hold = 30 * time.Second
		if c.opts.XDSDir != "" {
			hold = -1
		}
	}
	c.names = resolve.New(resolve.Options{Log: c.opts.Log})
	c.store = snapshot.New(snapshot.Options{
		HoldFirst: hold, RefuseActions: c.opts.Unenforceable == RefuseUnenforceable, Resolve: c.names.Watch, Logger: c.opts.Log,
	})
	return nil
}

// follow runs the source.
func (c *Controller) follow(ctx context.Context) error {
	return asFlag(c.source.Run(ctx, c.store))
}
