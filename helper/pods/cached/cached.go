// SPDX-License-Identifier: Apache-2.0

// Package cached reads what a container runtime remembers of the sandboxes that it has
// made: libcni keeps the arguments and the result of every ADD until the DEL. It is all
// that an ADD of our plugin would have been given, for pods that were made without it.
//
// Invariant: it only reads, and what cannot be read or is not a pod's is not there.
package cached

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"

	"kmesh/netns"
)

// DefaultDir is where container runtimes have libcni keep it.
const DefaultDir = "/var/lib/cni"

// Results is where below it the results are.
func Results(dir string) string { return filepath.Join(dir, "results") }

// Attachment is one ADD.
type Attachment struct {
	netns.Request
	// Addrs are the addresses that the interface was given.
	Addrs []netip.Addr
	// Ours: the configuration of that ADD named our plugin.
	Ours bool
}

// List reads the cache in a directory: by pod UID, every attachment that has a network
// namespace still. Loopback interfaces, which runtimes have made through libcni too, are
// left out. A directory that is not there is empty.
func List(dir string) (map[string][]Attachment, error) {
	lib := libcni.NewCNIConfigWithCacheDir(nil, dir, nil)
	all, err := lib.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("cache of the container runtime's networks: %w", err)
	}
	out := make(map[string][]Attachment)
	for _, c := range all {
		a, ok := attachmentOf(lib, c)
		if !ok {
			continue
		}
		if _, err := os.Stat(a.NetnsPath); err != nil {
			continue // its DEL is under way, or was missed
		}
		out[a.UID] = append(out[a.UID], a)
	}
	for _, of := range out {
		slices.SortFunc(of, func(a, b Attachment) int {
			return cmp.Or(cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.IfName, b.IfName), cmp.Compare(a.Network, b.Network))
		})
	}
	return out, nil
}

// Has says whether the cache has the attachment still: it goes with its DEL.
func Has(dir string, a netns.Attachment) bool {
	_, err := os.Stat(filepath.Join(Results(dir), a.Network+"-"+a.ContainerID+"-"+a.IfName))
	return err == nil
}

// attachmentOf is one entry as our ADD would have been given it.
func attachmentOf(lib *libcni.CNIConfig, c *libcni.NetworkAttachment) (Attachment, bool) {
	a := Attachment{Request: netns.Request{
		Attachment: netns.Attachment{ContainerID: c.ContainerID, Network: c.Network, IfName: c.IfName},
		NetnsPath:  c.NetNS,
	}}
	// They are parts of a file's name from here on.
	if utils.ValidateContainerID(c.ContainerID) != nil || utils.ValidateNetworkName(c.Network) != nil || utils.ValidateInterfaceName(c.IfName) != nil {
		return a, false
	}
	for _, arg := range c.CniArgs {
		switch arg[0] {
		case "K8S_POD_NAMESPACE":
			a.Namespace = arg[1]
		case "K8S_POD_NAME":
			a.Name = arg[1]
		case "K8S_POD_UID":
			a.UID = arg[1]
		}
	}
	if a.UID == "" || c.IfName == "lo" {
		return a, false
	}
	a.CgroupPath, _ = c.CapabilityArgs["cgroupPath"].(string)
	a.Ours = names(c.Config)
	res, err := lib.GetNetworkListCachedResult(&libcni.NetworkConfigList{Name: c.Network, CNIVersion: types100.ImplementedSpecVersion}, &libcni.RuntimeConf{ContainerID: c.ContainerID, IfName: c.IfName})
	if err != nil || res == nil {
		return a, false
	}
	got, err := types100.NewResultFromResult(res)
	if err != nil {
		return a, false
	}
	for _, ip := range got.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			a.Addrs = append(a.Addrs, addr.Unmap())
		}
	}
	// libcni before 1.3 remembers no namespace; the result does.
	for _, i := range got.Interfaces {
		if a.NetnsPath == "" && i != nil && i.Name == c.IfName {
			a.NetnsPath = i.Sandbox
		}
	}
	return a, filepath.IsAbs(a.NetnsPath)
}

// names says whether a configuration names our plugin.
func names(config []byte) bool {
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal(config, &list) != nil {
		return false
	}
	for _, p := range list.Plugins {
		if p.Type == "kmesh-cni" {
			return true
		}
	}
	return false
}

// Of chooses from a pod's attachments those that are to be enrolled: the ones with an
// address that the API server shows. A network that delegates to others has an entry
// beside theirs for one interface: the one which our plugin was part of, else the first.
func Of(all []Attachment, addrs []netip.Addr) []Attachment {
	var out []Attachment
	for _, a := range all {
		if !slices.ContainsFunc(a.Addrs, func(has netip.Addr) bool { return slices.Contains(addrs, has) }) {
			continue
		}
		i := slices.IndexFunc(out, func(o Attachment) bool { return o.ContainerID == a.ContainerID && o.IfName == a.IfName })
		switch {
		case i < 0:
			out = append(out, a)
		case a.Ours && !out[i].Ours:
			out[i] = a
		}
	}
	return out
}
