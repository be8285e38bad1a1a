// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"context"
	"net/netip"

	"kmesh/test/plane"
)

// kubeletUser is who the kubelet is to the API server.
func (n *Node) kubeletUser() string { return "system:node:" + n.Name }

// startPlane starts the cluster's control plane. It is outside the machine, so that a reboot leaves it.
func (n *Node) startPlane(ctx context.Context) (err error) {
	n.Plane, err = plane.Start(ctx, plane.Options{
		Node: n.Node, Programs: n.parts.kubernetes, Address: ServiceIP, Port: 443, IPs: []netip.Addr{NodeIP}, ServiceRange: serviceRange,
		Users: map[string][]string{n.kubeletUser(): {"system:nodes"}},
	})
	return err
}
