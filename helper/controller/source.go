// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"kmesh/helper/identity"
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

// identityFlag are those of what certificates are asked for with.
var identityFlag = map[string]string{
	"Target":      "--ca-server",
	"RootsFile":   "--xds-roots",
	"TokenFile":   "--xds-token",
	"ClusterID":   "--xds-cluster-id",
	"TrustDomain": "--trust-domain",
}

// asFlag says an option's error with the flag that the user knows.
func asFlag(err error) error {
	var id *identity.OptionError
	if errors.As(err, &id) && identityFlag[id.Option] != "" {
		return fmt.Errorf("%s: %w", identityFlag[id.Option], id.Err)
	}
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
		Node:      o.node(o.NodeID, o.NodeMetadata),
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

// node is who asks.
func (o Options) node(id string, metadata map[string]string) *corev3.Node {
	n := &corev3.Node{Id: id, UserAgentName: "kmesh", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: o.Version}}
	for k, v := range metadata {
		if n.Metadata == nil {
			n.Metadata = &structpb.Struct{Fields: make(map[string]*structpb.Value)}
		}
		n.Metadata.Fields[k] = structpb.NewStringValue(v)
	}
	return n
}
