// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// The node's addresses. ServiceIP is the service "kubernetes": without a kube-proxy it is an address of the node's own,
// on which the API server listens, so that a pod reaches it where its environment says.
var (
	NodeIP    = netip.MustParseAddr("10.76.0.1")
	ServiceIP = netip.MustParseAddr("10.79.0.1")
)

const (
	serviceRange = "10.79.0.0/24"
	bridgeName   = "cni0"
	networkName  = "pods"
)

// cniPlugins are what the network's configuration calls, and containerd.
var cniPlugins = []string{"bridge", "host-local", "loopback"}

// DefaultConflist is a node's network before Kmesh is installed.
var DefaultConflist = []byte(`{
  "cniVersion": "1.0.0",
  "name": "` + networkName + `",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "` + bridgeName + `",
      "isGateway": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.78.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    }
  ]
}
`)

// addAddresses runs in the node's network namespace.
func addAddresses() error {
	// A bridge without ports: a kernel without loadable modules has no dummy interface.
	l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node0"}}
	if err := netlink.LinkAdd(l); err != nil {
		return err
	}
	for _, ip := range []netip.Addr{NodeIP, ServiceIP} {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}
