// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"kmesh/bpf"
	"kmesh/netns"
)

func TestCollection(t *testing.T) {
	for name, c := range map[string]struct {
		keys map[string]string
		left int // of the two of this network
	}{
		"no key":       {nil, 2},
		"empty":        {map[string]string{"cni.dev/valid-attachments": "[]"}, 0},
		"null":         {map[string]string{"cni.dev/attachments": "null"}, 0},
		"new key":      {map[string]string{"cni.dev/valid-attachments": `[{"containerID":"c1","ifname":"eth0"}]`}, 1},
		"old key":      {map[string]string{"cni.dev/attachments": `[{"containerID":"c1","ifname":"eth0"}]`}, 1},
		"both, other":  {map[string]string{"cni.dev/attachments": `[{"containerID":"c1","ifname":"eth0"}]`, "cni.dev/valid-attachments": `[{"containerID":"c2","ifname":"eth0"}]`}, 2},
		"other if":     {map[string]string{"cni.dev/attachments": `[{"containerID":"c1","ifname":"eth1"}]`}, 0},
		"other id too": {map[string]string{"cni.dev/attachments": `[{"containerID":"c2","ifname":"eth0"},{"containerID":"gone","ifname":"eth0"}]`}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			foreign := e.pod("c3", optedIn)
			foreign.network = "storage"
			for _, p := range []pluginCall{e.pod("c1", optedIn), e.pod("c2", optedIn), foreign} {
				e.must("ADD", p)
			}
			gc := pluginCall{version: "1.1.0", network: "cluster.net", extra: c.keys}
			if out := e.must("GC", gc); out != "" {
				t.Errorf("GC printed %q", out)
			}
			e.wantLinks((c.left + 1) * (nCgroup + nTC))
			e.must("CHECK", foreign)
		})
	}
	e := newEnv(t)
	e.must("ADD", e.pod("c1", optedIn))
	gc := pluginCall{version: "1.1.0", network: "cluster.net", extra: map[string]string{"cni.dev/valid-attachments": "{}"}}
	e.wantCode("GC", gc, types.ErrDecodingFailure, "cni.dev/valid-attachments")
	e.wantLinks(nCgroup + nTC)
}

func TestCheckSeesWhatIsMissing(t *testing.T) {
	e := newEnv(t)
	c := e.pod("c1", optedIn)
	e.wantCode("CHECK", c, uint(netns.CodeNotReady), "not enrolled")
	e.must("ADD", c)
	p, err := e.node().Get(t.Context(), c.attachment())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(e.bpffs, "cgroups", fmt.Sprint(p.Cgroup), "connect4")); err != nil {
		t.Fatal(err)
	}
	e.wantCode("CHECK", c, types.ErrIOFailure, "connect4 is not attached")
	e.must("ADD", c)
	e.must("CHECK", c)
	e.must("DEL", c)
}

func TestDelWithLittleToGoBy(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, e *env, c *pluginCall){
		"no netns":      func(_ *testing.T, _ *env, c *pluginCall) { c.netns = "" },
		"netns gone":    func(t *testing.T, _ *env, c *pluginCall) { dropNetns(t, c.netns) },
		"no prevResult": func(_ *testing.T, _ *env, c *pluginCall) { c.prevResult = "" },
		"no args":       func(_ *testing.T, _ *env, c *pluginCall) { c.args, c.cgroupPath, c.annotations = "", "", nil },
		"bogus UID":     func(_ *testing.T, _ *env, c *pluginCall) { c.args = "K8S_POD_UID=../.." },
		"opted out now": func(_ *testing.T, _ *env, c *pluginCall) {
			c.annotations = map[string]string{"kmesh.net/enroll": "nonsense"}
		},
		"cgroup gone": func(t *testing.T, e *env, c *pluginCall) {
			rmcgroup(t, e.cgroups+strings.TrimPrefix(c.cgroupPath, e.cgroupsPath))
		},
		"programs gone": func(t *testing.T, e *env, _ *pluginCall) {
			if err := os.RemoveAll(filepath.Dir(bpf.ProgPath(e.bpffs, "x"))); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			c := e.pod("c1", optedIn)
			e.must("ADD", c)
			change(t, e, &c)
			for range 3 {
				e.must("DEL", c)
			}
			if left := append(files(t, filepath.Join(e.bpffs, "pods")), files(t, filepath.Join(e.bpffs, "cgroups"))...); len(left) != 0 {
				t.Errorf("bpffs has %v", left)
			}
			if name != "programs gone" {
				e.wantLinks(0)
			}
		})
	}
}
