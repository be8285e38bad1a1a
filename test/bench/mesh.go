// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"

	"kmesh/test/bench/load"
)

//go:embed mesh/*.yaml haproxy/*.cfg *.lua
var files embed.FS

// Addresses of the services, behind the ports of package load and fortio's.
var (
	vip       = netip.MustParseAddr("10.96.0.1") // the endpoint chosen at connect
	vipL7     = netip.MustParseAddr("10.96.0.2") // requests routed, at SwitchPort to three endpoints by path
	vipSame   = netip.MustParseAddr("10.96.0.3") // requests routed, all to one endpoint
	vipBeside = netip.MustParseAddr("10.96.0.4") // as vipL7, to a server that is not enrolled
)

// mesh is what the files in mesh/ are filled with.
type mesh struct {
	Version  int
	Clusters []cluster
	Services []service
}

type cluster struct {
	Name     string
	Endpoint netip.AddrPort
}

// service is of TCP, to a cluster, or of HTTP.
type service struct {
	At     netip.AddrPort
	TCP    string
	Routes []route
}

type route struct {
	Prefix, Cluster string
}

// meshOf: server is the enrolled one, beside the one that is not, own the pod that connects to itself through the service.
func meshOf(version int, server, beside, own netip.Addr) mesh {
	m := mesh{Version: version}
	tcp := func(name string, endpoint netip.Addr, port uint16) {
		m.Clusters = append(m.Clusters, cluster{name, netip.AddrPortFrom(endpoint, port)})
		m.Services = append(m.Services, service{At: netip.AddrPortFrom(vip, port), TCP: name})
	}
	tcp("http", server, load.HTTPPort)
	tcp("echo", server, load.EchoPort)
	tcp("sink", server, load.SinkPort)
	tcp("own", own, load.ConnectPort)
	for _, l7 := range []struct {
		at, server netip.Addr
		prefix     string
	}{{vipL7, server, "l7"}, {vipBeside, beside, "beside"}} {
		http := func(port uint16, routes map[string]uint16) {
			s := service{At: netip.AddrPortFrom(l7.at, port)}
			for _, path := range []string{"/", "/a", "/b", "/c"} {
				to, ok := routes[path]
				if !ok {
					continue
				}
				name := fmt.Sprintf("%s-%d", l7.prefix, to)
				m.Clusters = append(m.Clusters, cluster{name, netip.AddrPortFrom(l7.server, to)})
				s.Routes = append(s.Routes, route{path, name})
			}
			m.Services = append(m.Services, s)
		}
		http(load.HTTPPort, map[string]uint16{"/": load.HTTPPort})
		http(load.PagePort, map[string]uint16{"/": load.PagePort})
		http(fortioPort, map[string]uint16{"/": fortioPort})
		http(load.SwitchPort, map[string]uint16{"/a": load.SwitchPorts[0], "/b": load.SwitchPorts[1], "/c": load.SwitchPorts[2]})
	}
	m.Clusters = append(m.Clusters, cluster{"same", netip.AddrPortFrom(server, load.SwitchPort)})
	m.Services = append(m.Services, service{At: netip.AddrPortFrom(vipSame, load.SwitchPort), Routes: []route{{"/", "same"}}})
	return m
}

// write puts the files into dir, each by an atomic rename, and leaves alone what is as it was: where only endpoints
// change, one file does, and so one generation is all of it.
func (m mesh) write(dir string) error {
	all, err := template.ParseFS(files, "mesh/*.yaml")
	if err != nil {
		return err
	}
	for _, t := range all.Templates() {
		var text bytes.Buffer
		if err := t.Execute(&text, m); err != nil {
			return fmt.Errorf("filling in %s: %w", t.Name(), err)
		}
		to := filepath.Join(dir, t.Name())
		if old, err := os.ReadFile(to); err == nil && bytes.Equal(old, text.Bytes()) {
			continue
		}
		if err := os.WriteFile(to+".new", text.Bytes(), 0o600); err != nil {
			return err
		}
		if err := os.Rename(to+".new", to); err != nil {
			return err
		}
	}
	return nil
}
