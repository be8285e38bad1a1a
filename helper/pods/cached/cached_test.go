// SPDX-License-Identifier: Apache-2.0

package cached

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/utils"
)

// entry is libcni's own form on disk (libcni.cachedInfo).
type entry struct {
	Kind           string         `json:"kind"`
	ContainerID    string         `json:"containerId"`
	Config         []byte         `json:"config"`
	IfName         string         `json:"ifName"`
	NetworkName    string         `json:"networkName"`
	NetNS          string         `json:"netns,omitempty"`
	CniArgs        [][2]string    `json:"cniArgs,omitempty"`
	CapabilityArgs map[string]any `json:"capabilityArgs,omitempty"`
	Result         any            `json:"result,omitempty"`
}

func pod(uid, container, network, ifName, netns, ip string) entry {
	return entry{
		Kind: "cniCacheV1", ContainerID: container, IfName: ifName, NetworkName: network, NetNS: netns,
		Config:         []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}`),
		CniArgs:        [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web"}, {"K8S_POD_UID", uid}},
		CapabilityArgs: map[string]any{"cgroupPath": "/kubepods/pod" + uid},
		Result: map[string]any{
			"cniVersion": "1.0.0",
			"interfaces": []any{map[string]any{"name": "veth1"}, map[string]any{"name": ifName, "sandbox": netns}},
			"ips":        []any{map[string]any{"address": ip + "/24", "interface": 1}},
		},
	}
}

func write(t testing.TB, dir string, e entry) {
	t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	results := Results(dir)
	if err := os.MkdirAll(results, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(results, e.NetworkName+"-"+e.ContainerID+"-"+e.IfName), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestList(t *testing.T) {
	ns := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(ns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(*entry)
		found  bool
		check  func(*testing.T, Attachment)
	}{
		{"as libcni 1.3 writes it", func(*entry) {}, true, func(t *testing.T, a Attachment) {
			if a.Namespace != "shop" || a.Name != "web" || a.UID != "u1" || a.NetnsPath != ns || a.CgroupPath != "/kubepods/podu1" ||
				a.ContainerID != "c1" || a.Network != "pods" || a.IfName != "eth0" || a.Ours {
				t.Errorf("%+v", a)
			}
			if !reflect.DeepEqual(a.Addrs, []netip.Addr{netip.MustParseAddr("10.1.0.5")}) {
				t.Errorf("addresses %v", a.Addrs)
			}
		}},
		{"without namespace, as before 1.3", func(e *entry) { e.NetNS = "" }, true, func(t *testing.T, a Attachment) {
			if a.NetnsPath != ns {
				t.Errorf("namespace %q, want the result's", a.NetnsPath)
			}
		}},
		{"made with our plugin", func(e *entry) { e.Config = []byte(`{"plugins":[{"type":"bridge"},{"type":"kmesh-cni"}]}`) }, true, func(t *testing.T, a Attachment) {
			if !a.Ours {
				t.Error("not known as ours")
			}
		}},
		{"no capability", func(e *entry) { e.CapabilityArgs = nil }, true, func(t *testing.T, a Attachment) {
			if a.CgroupPath != "" {
				t.Errorf("cgroup %q", a.CgroupPath)
			}
		}},
		{"capability of another type", func(e *entry) { e.CapabilityArgs = map[string]any{"cgroupPath": 5} }, true, func(t *testing.T, a Attachment) {
			if a.CgroupPath != "" {
				t.Errorf("cgroup %q", a.CgroupPath)
			}
		}},
		{"an old result", func(e *entry) {
			e.Result = map[string]any{"cniVersion": "0.3.1", "interfaces": []any{map[string]any{"name": "eth0", "sandbox": ns}},
				"ips": []any{map[string]any{"version": "4", "address": "10.1.0.5/24", "interface": 0}}}
		}, true, func(t *testing.T, a Attachment) {
			if len(a.Addrs) != 1 {
				t.Errorf("addresses %v", a.Addrs)
			}
		}},
		{"namespace is gone", func(e *entry) { e.NetNS = ns + "gone" }, false, nil},
		{"loopback", func(e *entry) { e.IfName = "lo" }, false, nil},
		{"no pod", func(e *entry) { e.CniArgs = nil }, false, nil},
		{"no result", func(e *entry) { e.Result = nil }, true, func(t *testing.T, a Attachment) {
			if len(a.Addrs) != 0 {
				t.Errorf("addresses %v", a.Addrs)
			}
		}},
		{"another kind", func(e *entry) { e.Kind = "cniCacheV2" }, false, nil},
		{"no namespace at all", func(e *entry) { e.NetNS, e.Result = "", map[string]any{"cniVersion": "1.0.0"} }, false, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			e := pod("u1", "c1", "pods", "eth0", ns, "10.1.0.5")
			tt.change(&e)
			write(t, dir, e)
			// What is beside it must not matter.
			if err := os.WriteFile(filepath.Join(Results(dir), "pods-broken-eth0"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(Results(dir), "pods-empty-eth0"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			all, err := List(dir)
			if err != nil {
				t.Fatal(err)
			}
			if !tt.found {
				if len(all) != 0 {
					t.Errorf("found %+v", all)
				}
				return
			}
			if len(all) != 1 || len(all["u1"]) != 1 {
				t.Fatalf("found %+v, want one", all)
			}
			tt.check(t, all["u1"][0])
			if !Has(dir, all["u1"][0].Attachment) {
				t.Error("it is listed and not there")
			}
			if err := os.RemoveAll(Results(dir)); err != nil {
				t.Fatal(err)
			}
			if Has(dir, all["u1"][0].Attachment) {
				t.Error("it is there after it was removed")
			}
		})
	}
	if all, err := List(t.TempDir()); err != nil || len(all) != 0 {
		t.Errorf("of a directory without a cache: %v, %v", all, err)
	}
}

func TestOf(t *testing.T) {
	at := func(container, network, ifName string, ours bool, ips ...string) Attachment {
		a := Attachment{Ours: ours}
		a.ContainerID, a.Network, a.IfName = container, network, ifName
		for _, ip := range ips {
			a.Addrs = append(a.Addrs, netip.MustParseAddr(ip))
		}
		return a
	}
	tests := []struct {
		name string
		all  []Attachment
		want string // network/interface of each
	}{
		{"one", []Attachment{at("c", "pods", "eth0", false, "10.0.0.1")}, "pods/eth0"},
		{"an older sandbox", []Attachment{at("b", "pods", "eth0", false, "10.0.0.9"), at("c", "pods", "eth0", false, "10.0.0.1")}, "pods/eth0"},
		{"a second network", []Attachment{at("c", "pods", "eth0", false, "10.0.0.1"), at("c", "storage", "net1", false, "172.16.0.1")}, "pods/eth0"},
		{"both families", []Attachment{at("c", "pods", "eth0", false, "10.0.0.1", "fd00::1")}, "pods/eth0"},
		{"delegated", []Attachment{at("c", "multus", "eth0", false, "10.0.0.1"), at("c", "pods", "eth0", true, "10.0.0.1")}, "pods/eth0"},
		{"delegated, ours first", []Attachment{at("c", "a", "eth0", true, "10.0.0.1"), at("c", "b", "eth0", false, "10.0.0.1")}, "a/eth0"},
		{"none", []Attachment{at("c", "pods", "eth0", false)}, ""},
	}
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, a := range Of(tt.all, addrs) {
				got = append(got, a.Network+"/"+a.IfName)
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%v, want %s", got, tt.want)
			}
		})
	}
}

// Whatever is in the file: no panic, and what comes of it is fit for a request.
func FuzzList(f *testing.F) {
	dir := f.TempDir()
	ns := filepath.Join(dir, "ns")
	if err := os.WriteFile(ns, nil, 0o600); err != nil {
		f.Fatal(err)
	}
	for _, e := range []entry{
		pod("u1", "c1", "pods", "eth0", "/", "10.1.0.5"), pod("u1", "c1", "pods", "eth0", "", "fd00::1"),
		pod("u1", "../c1", "pods", "eth0", "/", "10.1.0.5"), {Kind: "cniCacheV1"}, {},
	} {
		data, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"kind":"cniCacheV1","containerId":"c1","ifName":"eth0","networkName":"pods","netns":"/","cniArgs":[["K8S_POD_UID","u"]],"result":{"cniVersion":"1.0.0","interfaces":[null]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		at := t.TempDir()
		if err := os.Mkdir(Results(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(Results(at), "pods-c1-eth0"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := List(at)
		if err != nil {
			t.Fatal(err)
		}
		for uid, of := range all {
			for _, a := range of {
				if uid == "" || a.UID != uid || !filepath.IsAbs(a.NetnsPath) || a.IfName == "lo" ||
					utils.ValidateContainerID(a.ContainerID) != nil || utils.ValidateNetworkName(a.Network) != nil {
					t.Errorf("%q: %+v of %q", uid, a, data)
				}
			}
		}
	})
}
