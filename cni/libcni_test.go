// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// primaryType is a primary plugin for the tests: the test binary under another name.
const primaryType = "kmesh-test-primary"

// primary answers as a primary plugin that has made eth0, and returns the exit status.
func primary() int {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return 1
	}
	switch os.Getenv("CNI_COMMAND") {
	case "ADD":
		fmt.Print(result("1.1.0"))
	case "VERSION":
		fmt.Print(`{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`)
	}
	return 0
}

// The whole way of a runtime: a chain, capabilities passed by libcni, its cache, its collection.
func TestThroughLibcni(t *testing.T) {
	e := newEnv(t)
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{self: primaryType, binary: "kmesh-cni"} {
		if err := os.Symlink(from, filepath.Join(bin, to)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.1.0","name":"cluster.net","plugins":[{"type":"` + primaryType + `"},
		{"type":"kmesh-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true},"bpffs":` + quote(e.bpffs) + `,"runDir":` + quote(e.run) + `,"stateDir":` + quote(e.state) + `}]}`))
	if err != nil {
		t.Fatal(err)
	}
	runtime := libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil)
	conf := func(c pluginCall) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{ContainerID: c.id, NetNS: c.netns, IfName: c.ifName, CapabilityArgs: map[string]any{
			"io.kubernetes.cri.pod-annotations": c.annotations, "cgroupPath": c.cgroupPath, "portMappings": []any{},
		}, Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_UID", c.cgroupPath[len(c.cgroupPath)-36:]}}}
	}
	ctx := t.Context()
	in, out, other := e.pod("in", optedIn), e.pod("out", nil), e.pod("other", optedIn)
	for _, c := range []pluginCall{in, out, other} {
		if _, err := runtime.AddNetworkList(ctx, list, conf(c)); err != nil {
			t.Fatal(err)
		}
		if err := runtime.CheckNetworkList(ctx, list, conf(c)); err != nil {
			t.Error(err)
		}
	}
	e.wantLinks(2 * (nCgroup + nTC))
	pods, err := e.node().List(ctx)
	if err != nil || len(pods) != 2 || !pods[0].Live() || !pods[1].Live() {
		t.Errorf("pods are %+v, %v", pods, err)
	}
	if err := runtime.GetStatusNetworkList(ctx, list); err != nil {
		t.Error(err)
	}
	if err := runtime.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "in", IfName: "eth0"}, {ContainerID: "out", IfName: "eth0"}}}); err != nil {
		t.Error(err)
	}
	e.wantLinks(nCgroup + nTC)
	for range 2 {
		for _, c := range []pluginCall{in, out, other} {
			if err := runtime.DelNetworkList(ctx, list, conf(c)); err != nil {
				t.Error(err)
			}
		}
	}
	e.wantLinks(0)
}
