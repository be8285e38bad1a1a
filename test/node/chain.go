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
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
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
	entries  []map[string]any // of the plugins
	conf     []byte
	list     *libcni.NetworkConfigList
	cacheDir string
	path     []string // where plugins are
	ipamDir  string
	confDir  string // where the configuration is read from anew for each call; empty: it is list
}

func newChain(ctx context.Context, n *Node) (*chain, error) {
	dir, err := Programs(ctx, "bridge", "host-local")
	if err != nil {
		return nil, err
	}
	path := []string{dir}
	c := &chain{n: n, cacheDir: filepath.Join(n.Dir, "cni"), ipamDir: filepath.Join(n.Dir, "ipam")}
	c.path = path
	if err := c.configure(ctx, !n.opts.NoKmesh); err != nil {
		return nil, err
	}
	return c, nil
}

// configure makes the network's configuration, with kmesh-cni or without.
func (c *chain) configure(ctx context.Context, kmesh bool) error {
	n := c.n
	path := c.path
	c.entries = []map[string]any{c.bridge()}
	if kmesh {
		bin, err := n.program(ctx, "kmesh-cni")
		if err != nil {
			return err
		}
		path = append([]string{filepath.Dir(bin)}, path...)
		c.entries = append(c.entries, c.kmesh())
	}
	var err error
	if c.conf, c.list, err = c.version(n.opts.CNIVersion); err != nil {
		return err
	}
	c.path = path
	c.lib = libcni.NewCNIConfigWithCacheDir(path, c.cacheDir, &plugins{})
	return nil
}

// Chain puts kmesh-cni into the network's configuration, as an installation does on a node whose pods run already.
func (n *Node) Chain(ctx context.Context) error { return n.cni.configure(ctx, true) }

// version is the network's configuration in a version of the specification.
func (c *chain) version(v string) (conf []byte, list *libcni.NetworkConfigList, err error) {
	conf, err = json.MarshalIndent(map[string]any{"cniVersion": v, "name": Network, "plugins": c.entries}, "", "  ")
	if err != nil {
		return nil, nil, err
	}
	if list, err = libcni.ConfListFromBytes(conf); err != nil {
		return nil, nil, fmt.Errorf("reading back the network's configuration: %w", err)
	}
	return conf, list, nil
}

// of is the configuration that a sandbox is handled with.
func (c *chain) of(s *Sandbox) (*libcni.NetworkConfigList, error) {
	if c.confDir != "" {
		return c.read()
	}
	if v := s.pod.CNIVersion; v != "" {
		_, list, err := c.version(v)
		return list, err
	}
	return c.list, nil
}

// read reads the first configuration of a folder, as a runtime does.
func (c *chain) read() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(c.confDir, []string{".conflist"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no network is configured in %s", c.confDir)
	}
	return libcni.ConfListFromFile(slices.Min(files))
}

// Follow has the node's network be what is configured in a folder, which is read anew for each call, and its plugins
// what is in another: bridge and host-local are put there. For nodes whose chain somebody else makes (Options.NoKmesh).
func (n *Node) Follow(confDir, binDir string) error {
	for _, name := range []string{"bridge", "host-local"} {
		path, err := invoke.FindInPath(name, n.cni.path)
		if err == nil {
			err = os.Symlink(path, filepath.Join(binDir, name))
		}
		if err != nil {
			return err
		}
	}
	n.cni.confDir, n.cni.path = confDir, []string{binDir}
	n.cni.lib = libcni.NewCNIConfigWithCacheDir(n.cni.path, n.cni.cacheDir, &plugins{})
	return nil
}

// CacheDir is where libcni remembers attachments.
func (n *Node) CacheDir() string { return n.cni.cacheDir }

// use finds plugins in another folder first.
func (c *chain) use(dir string) {
	c.lib = libcni.NewCNIConfigWithCacheDir(append([]string{dir}, c.path...), c.cacheDir, &plugins{})
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
	list, err := c.of(s)
	if err != nil {
		return err
	}
	return c.n.Do(func() error {
		res, err := c.lib.AddNetworkList(ctx, list, c.runtimeConf(s))
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

func (c *chain) del(ctx context.Context, s *Sandbox, change func(*libcni.RuntimeConf)) error {
	list, err := c.of(s)
	if err != nil {
		return err
	}
	rt := c.runtimeConf(s)
	change(rt)
	return c.n.Do(func() error { return c.lib.DelNetworkList(ctx, list, rt) })
}

// forget drops what libcni and host-local remember of a sandbox that never gets a DEL.
func (c *chain) forget(s *Sandbox) error {
	errs := []error{os.RemoveAll(c.cached(s))}
	held, err := c.reservations()
	errs = append(errs, err)
	for _, ip := range held {
		// By the container it is for: an ADD that failed tells no address.
		file := filepath.Join(c.ipamDir, Network, ip)
		of, err := os.ReadFile(file)
		if err == nil && strings.HasPrefix(string(of), s.ContainerID) {
			err = os.Remove(file)
		}
		if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cached is the file in which libcni keeps the result of an ADD.
func (c *chain) cached(s *Sandbox) string {
	return filepath.Join(c.cacheDir, "results", fmt.Sprintf("%s-%s-%s", Network, s.ContainerID, IfName))
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

// ConflistIn is the same in a version of the specification.
func (n *Node) ConflistIn(version string) ([]byte, error) {
	conf, _, err := n.cni.version(version)
	return conf, err
}

// Check does CNI CHECK for a sandbox.
func (n *Node) Check(ctx context.Context, s *Sandbox) error {
	list, err := n.cni.of(s)
	if err != nil {
		return err
	}
	return n.Do(func() error { return n.cni.lib.CheckNetworkList(ctx, list, n.cni.runtimeConf(s)) })
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
