// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"kmesh/netns"
)

func TestCgroupErrors(t *testing.T) {
	e := newEnv(t)
	other := e.pod("other", nil)
	for name, c := range map[string]struct {
		change func(c *pluginCall)
		code   uint
		says   string
	}{
		"root":        {func(c *pluginCall) { c.cgroupPath = "/" }, uint(netns.CodeCgroup), "root cgroup"},
		"dot dot":     {func(c *pluginCall) { c.cgroupPath = "/.." }, uint(netns.CodeCgroup), `".."`},
		"other pod's": {func(c *pluginCall) { c.cgroupPath = other.cgroupPath }, uint(netns.CodeCgroup), "does not name pod UID"},
		"missing": {func(c *pluginCall) {
			c.cgroupPath = "/kubepods/besteffort" + c.cgroupPath[strings.LastIndex(c.cgroupPath, "/"):]
		}, uint(netns.CodeCgroup), "not in the cgroup2 hierarchy"},
		"not a string": {func(c *pluginCall) {
			c.extra = map[string]string{"runtimeConfig": `{"cgroupPath":7,"io.kubernetes.cri.pod-annotations":{"kmesh.net/enroll":"true"}}`}
		}, types.ErrDecodingFailure, "cgroupPath"},
		"empty, UID unknown to the node": {func(c *pluginCall) {
			c.cgroupPath, c.args = "", strings.Replace(c.args, "K8S_POD_UID=7a1e0c55", "K8S_POD_UID=7a1e0c56", 1)
		}, uint(netns.CodeCgroup), "no cgroup2 directory"},
		"no UID": {func(c *pluginCall) { c.args = "" }, uint(netns.CodeCgroup), "K8S_POD_UID"},
		"two": {func(c *pluginCall) {
			leaf := c.cgroupPath[strings.LastIndex(c.cgroupPath, "/"):]
			if err := os.MkdirAll(e.cgroups+"/kubepods/burstable", 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { rmcgroup(t, e.cgroups+"/kubepods/burstable") })
			e.mkcgroup(e.cgroups + "/kubepods/burstable" + leaf)
			c.cgroupPath = ""
		}, uint(netns.CodeAmbiguous), "2 cgroups"},
	} {
		t.Run(name, func(t *testing.T) {
			call := e.pod("c1", optedIn)
			c.change(&call)
			e.wantCode("ADD", call, c.code, c.says)
			e.must("DEL", call)
		})
	}
	t.Run("empty", func(t *testing.T) { // the fall-back finds it by UID
		call := e.pod("c2", optedIn)
		call.cgroupPath = ""
		e.must("ADD", call)
		e.wantLinks(nCgroup + nTC)
		e.must("DEL", call)
	})
	t.Run("our own", func(t *testing.T) {
		call := e.pod("c3", optedIn)
		dir, err := os.Open(e.cgroups + strings.TrimPrefix(call.cgroupPath, e.cgroupsPath))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		call.attr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		e.wantCode("ADD", call, uint(netns.CodeCgroup), "this very process")
	})
	e.wantLinks(0)
}

func TestConfigurationErrors(t *testing.T) {
	e := newEnv(t)
	for name, c := range map[string]struct {
		change func(c *pluginCall)
		code   uint
		says   string
	}{
		"no prevResult":        {func(c *pluginCall) { c.prevResult = "" }, types.ErrInvalidNetworkConfig, "behind the primary plugin"},
		"null prevResult":      {func(c *pluginCall) { c.prevResult = "null" }, types.ErrInvalidNetworkConfig, "behind the primary plugin"},
		"prevResult no object": {func(c *pluginCall) { c.prevResult = "7" }, types.ErrDecodingFailure, "prevResult"},
		"bpffs relative":       {func(c *pluginCall) { c.extra = map[string]string{"bpffs": `"x"`} }, types.ErrInvalidNetworkConfig, `key "bpffs"`},
		"bpffs the root":       {func(c *pluginCall) { c.extra = map[string]string{"bpffs": `"/"`} }, types.ErrInvalidNetworkConfig, `key "bpffs"`},
		"runDir a number":      {func(c *pluginCall) { c.extra = map[string]string{"runDir": `7`} }, types.ErrInvalidNetworkConfig, `key "runDir"`},
		"stateDir null":        {func(c *pluginCall) { c.extra = map[string]string{"stateDir": `null`} }, types.ErrInvalidNetworkConfig, `key "stateDir"`},
		"onUnready unknown":    {func(c *pluginCall) { c.extra = map[string]string{"onUnready": `"maybe"`} }, types.ErrInvalidNetworkConfig, `key "onUnready"`},
		"onUnready a number":   {func(c *pluginCall) { c.extra = map[string]string{"onUnready": `7`} }, types.ErrInvalidNetworkConfig, `key "onUnready"`},
		"annotation a number": {func(c *pluginCall) {
			c.extra = map[string]string{"runtimeConfig": `{"io.kubernetes.cri.pod-annotations":{"kmesh.net/enroll":1}}`}
		}, types.ErrDecodingFailure, "kmesh.net/enroll is not a string"},
		"runtimeConfig a list": {func(c *pluginCall) { c.extra = map[string]string{"runtimeConfig": `[]`} }, types.ErrDecodingFailure, "runtimeConfig"},
		"CNI_ARGS broken":      {func(c *pluginCall) { c.args = "x" }, types.ErrInvalidEnvironmentVariables, "CNI_ARGS"},
	} {
		t.Run(name, func(t *testing.T) {
			call := e.pod("c1", optedIn)
			c.change(&call)
			e.wantCode("ADD", call, c.code, c.says)
			e.must("DEL", call)
		})
	}
	e.wantLinks(0)
}

func TestStreams(t *testing.T) {
	e := newEnv(t)
	c := e.pod("c1", optedIn)
	c.verb = "ADD"
	for name, stdin := range map[string]string{"empty": "", "garbage": "\x00\xff", "half": `{"cniVersion":"1.0.0","na`, "wrong type": `[]`} {
		t.Run(name, func(t *testing.T) {
			cmd := e.command(c)
			cmd.Stdin = strings.NewReader(stdin)
			out, err := cmd.Output()
			var own types.Error
			if err == nil || json.Unmarshal(out, &own) != nil || own.Code != types.ErrDecodingFailure {
				t.Errorf("printed %q, %v", out, err)
			}
		})
	}
	t.Run("stdout closed", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		defer w.Close()
		cmd := e.command(c)
		cmd.Stdout = w
		start := time.Now()
		if err := cmd.Run(); err == nil || time.Since(start) > 2*time.Second {
			t.Errorf("ended with %v after %v", err, time.Since(start))
		}
		e.must("DEL", c)
	})
	t.Run("slow stdin", func(t *testing.T) {
		cmd := e.command(c)
		r, w := io.Pipe()
		cmd.Stdin = r
		go func() {
			for _, b := range bytes.SplitAfter(e.stdin(c), []byte(",")) {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
			w.Close()
		}()
		out, err := cmd.Output()
		if err != nil || string(out) != c.prevResult {
			t.Errorf("printed %q, %v", out, err)
		}
		e.must("DEL", c)
	})
	e.wantLinks(0)
}
