// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

const (
	// Network is the name of every node's network.
	Network = "kmesh-test"
	// IfName is the pods' interface.
	IfName = "eth0"

	bridgeName = "cni0"
)

// chain is the node's network: libcni as a container runtime uses it, its plugins run in the node's namespace.
type chain struct {
	n        *Node
	lib      *libcni.CNIConfig
	conf     []byte
	list     *libcni.NetworkConfigList
	cacheDir string
	ipamDir  string
}

func newChain(ctx context.Context, n *Node) (*chain, error) {
	dir, err := Programs(ctx, "bridge", "host-local")
	if err != nil {
		return nil, err
	}
	path := []string{dir}
	c := &chain{n: n, cacheDir: filepath.Join(n.Dir, "cni"), ipamDir: filepath.Join(n.Dir, "ipam")}
	entries := []map[string]any{c.bridge()}
	if !n.opts.NoKmesh {
		bin, err := n.program(ctx, "kmesh-cni")
		if err != nil {
			return nil, err
		}
		path = append([]string{filepath.Dir(bin)}, path...)
		entries = append(entries, c.kmesh())
	}
	c.conf, err = json.MarshalIndent(map[string]any{"cniVersion": n.opts.CNIVersion, "name": Network, "plugins": entries}, "", "  ")
	if err != nil {
		return nil, err
	}
	if c.list, err = libcni.ConfListFromBytes(c.conf); err != nil {
		return nil, fmt.Errorf("reading back the network's configuration: %w", err)
	}
	c.lib = libcni.NewCNIConfigWithCacheDir(path, c.cacheDir, &plugins{})
	return c, nil
}

func (c *chain) bridge() map[string]any {
	return map[string]any{
		"type": "bridge", "bridge": bridgeName, "isGateway": true, "ipMasq": false, "hairpinMode": true,
		"ipam": map[string]any{
			"type":    "host-local",
			"dataDir": c.ipamDir,
			"ranges":  [][]any{{map[string]any{"subnet": c.n.opts.Subnet4.String()}}, {map[string]any{"subnet": c.n.opts.Subnet6.String()}}},
			"routes":  []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}},
		},
	}
}

func (c *chain) kmesh() map[string]any {
	entry := map[string]any{
		"type":         "kmesh-cni",
		"capabilities": map[string]any{annotationsCapability: true, cgroupCapability: true},
		"bpffs":        c.n.BPFFS,
		"runDir":       c.n.RunDir,
		"stateDir":     c.n.StateDir,
	}
	maps.Copy(entry, c.n.opts.Plugin)
	return entry
}

// The names by which a plugin asks the runtime for a pod's annotations and cgroup.
const (
	annotationsCapability = "io.kubernetes.cri.pod-annotations"
	cgroupCapability      = "cgroupPath"
)

// runtimeConf is what containerd gives to libcni for a sandbox.
func (c *chain) runtimeConf(s *Sandbox) *libcni.RuntimeConf {
	p := s.pod
	args := map[string]any{}
	if len(p.Annotations) > 0 {
		args[annotationsCapability] = p.Annotations
	}
	if !c.n.opts.NoCgroupPath && !p.NoCgroupPath {
		args[cgroupCapability] = p.CgroupParent
	}
	return &libcni.RuntimeConf{
		ContainerID: s.ContainerID,
		NetNS:       s.NetnsPath,
		IfName:      IfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", s.ContainerID},
			{"K8S_POD_UID", p.UID},
		},
		CapabilityArgs: args,
	}
}

func (c *chain) add(ctx context.Context, s *Sandbox) error {
	return c.n.Do(func() error {
		res, err := c.lib.AddNetworkList(ctx, c.list, c.runtimeConf(s))
		if err != nil {
			return err
		}
		if s.Result, err = json.Marshal(res); err != nil {
			return err
		}
		got, err := types100.NewResultFromResult(res)
		if err != nil {
			return err
		}
		for _, ip := range got.IPs {
			a, ok := netip.AddrFromSlice(ip.Address.IP)
			if !ok {
				return fmt.Errorf("address %s of the result: not an IP address", ip.Address.IP)
			}
			if a = a.Unmap(); a.Is4() {
				s.IP4 = a
			} else {
				s.IP6 = a
			}
		}
		return nil
	})
}

func (c *chain) del(ctx context.Context, s *Sandbox, netns string) error {
	return c.n.Do(func() error {
		rt := c.runtimeConf(s)
		rt.NetNS = netns
		return c.lib.DelNetworkList(ctx, c.list, rt)
	})
}

// forget drops what libcni and host-local remember of a sandbox that never gets a DEL.
func (c *chain) forget(s *Sandbox) error {
	errs := []error{os.RemoveAll(filepath.Join(c.cacheDir, "results", fmt.Sprintf("%s-%s-%s", Network, s.ContainerID, IfName)))}
	for _, ip := range []netip.Addr{s.IP4, s.IP6} {
		if ip.IsValid() {
			errs = append(errs, os.RemoveAll(filepath.Join(c.ipamDir, Network, ip.String())))
		}
	}
	return errors.Join(errs...)
}

// reservations are the addresses that host-local still holds.
func (c *chain) reservations() ([]string, error) {
	files, err := os.ReadDir(filepath.Join(c.ipamDir, Network))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var held []string
	for _, f := range files {
		if _, err := netip.ParseAddr(f.Name()); err == nil {
			held = append(held, f.Name())
		}
	}
	return held, err
}

// Conflist is the network's configuration as libcni got it.
func (n *Node) Conflist() []byte { return n.cni.conf }

// Check does CNI CHECK for a sandbox.
func (n *Node) Check(ctx context.Context, s *Sandbox) error {
	return n.Do(func() error { return n.cni.lib.CheckNetworkList(ctx, n.cni.list, n.cni.runtimeConf(s)) })
}

// Status does CNI STATUS (CNI 1.1.0 and newer; nothing on older).
func (n *Node) Status(ctx context.Context) error {
	return n.Do(func() error { return n.cni.lib.GetStatusNetworkList(ctx, n.cni.list) })
}

// GC does CNI GC: all but these sandboxes is garbage (CNI 1.1.0 and newer).
func (n *Node) GC(ctx context.Context, valid ...*Sandbox) error {
	args := &libcni.GCArgs{}
	for _, s := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: s.ContainerID, IfName: IfName})
	}
	return n.Do(func() error { return n.cni.lib.GCNetworkList(ctx, n.cni.list, args) })
}
