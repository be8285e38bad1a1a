// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"os"
	"strings"
)

// Platform is where a distribution has its plugins and configurations. The runtime itself is asked first: the table is for nodes where it cannot be, or
// says nothing about its network.
type Platform struct {
	Name    string
	BinDir  string
	ConfDir string
	// Socket of the runtime; empty where it is one of the usual ones.
	Socket string
	// mark is a path that only this platform has.
	mark string
}

const (
	usualBinDir  = "/opt/cni/bin"
	usualConfDir = "/etc/cni/net.d"
)

// platforms, in the order in which a node is compared with them; the last is what all others are.
var platforms = []Platform{
	{"microk8s", "/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/current/args/cni-network", "/var/snap/microk8s/common/run/containerd.sock", "/var/snap/microk8s/current"},
	{"k3s", "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/run/k3s/containerd/containerd.sock", "/var/lib/rancher/k3s/data/cni"},
	{"k3s-old", "/var/lib/rancher/k3s/data/current/bin", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/run/k3s/containerd/containerd.sock", "/var/lib/rancher/k3s/data/current/bin"},
	{"k3d", "/bin", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/run/k3s/containerd/containerd.sock", "/var/lib/rancher/k3s/agent/etc/cni/net.d"},
	{"rke2", usualBinDir, usualConfDir, "/run/k3s/containerd/containerd.sock", "/var/lib/rancher/rke2"},
	{"gke", "/home/kubernetes/bin", usualConfDir, "", "/home/kubernetes/bin"},
	{"openshift", "/var/lib/cni/bin", "/etc/cni/multus/net.d", "/run/crio/crio.sock", "/etc/cni/multus/net.d"},
	{"generic", usualBinDir, usualConfDir, "", ""},
}

// usualSockets are looked for in this order.
var usualSockets = []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/k3s/containerd/containerd.sock", "/run/cri-dockerd.sock"}

// PlatformNames are the names that Options.Platform may be.
func PlatformNames() []string {
	var names []string
	for _, p := range platforms {
		names = append(names, p.Name)
	}
	return names
}

// platform gives the row of a name, or of this node.
func platform(name string, exists func(string) bool) Platform {
	for _, p := range platforms {
		if p.Name == name || name == "" && (p.mark == "" || exists(p.mark)) {
			return p
		}
	}
	return platforms[len(platforms)-1]
}

// socket is where the runtime answers; empty when there is none.
func (o *Options) socket() string {
	switch o.CRISocket {
	case NoCRI:
		return ""
	case "":
	default:
		return strings.TrimPrefix(o.CRISocket, "unix://")
	}
	if p := platform(o.Platform, exists); p.Socket != "" && exists(p.Socket) {
		return p.Socket
	}
	for _, s := range usualSockets {
		if exists(s) {
			return s
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// dirs are the folders that the installation is about.
type dirs struct {
	bins []string // in the order in which the runtime looks for plugins
	conf string
	// watched is false for a folder that the runtime, as far as it tells, does not read itself: a meta plugin's.
	watched bool
}

// directories takes what the administrator says, then what the runtime says, then the table.
func (o *Options) directories(st *RuntimeStatus) (dirs, error) {
	p := platform(o.Platform, exists)
	d := dirs{bins: []string{p.BinDir}, conf: p.ConfDir, watched: true}
	// A named platform is a wish too, where it differs from what a runtime says (OpenShift: the folder that multus delegates to).
	if st != nil && o.Platform == "" {
		if len(st.PluginDirs) > 0 {
			d.bins = st.PluginDirs
		}
		if st.ConfDir != "" {
			d.conf = st.ConfDir
		}
	}
	if o.BinDir != "" {
		d.bins = []string{o.BinDir}
	}
	if o.ConfDir != "" {
		d.conf = o.ConfDir
	}
	if st != nil && st.ConfDir != "" {
		d.watched = sameDir(st.ConfDir, d.conf)
	}
	info, err := os.Stat(d.conf)
	switch {
	case err != nil:
		return d, fmt.Errorf("conf-dir: %w: mount the node's folder at the same path, or set conf-dir to where the runtime has its networks", err)
	case !info.IsDir():
		return d, fmt.Errorf("conf-dir: %s is no directory: set it to where the runtime has its networks", d.conf)
	}
	var found []string
	for _, bin := range d.bins {
		if isDir(bin) {
			found = append(found, bin)
		}
	}
	if len(found) == 0 {
		return d, fmt.Errorf("bin-dir: there is no %s: mount the node's folder at the same path, or set bin-dir to where the runtime has its plugins", strings.Join(d.bins, " and no "))
	}
	d.bins = found
	return d, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func sameDir(a, b string) bool {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(x, y)
}
