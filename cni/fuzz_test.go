// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kmesh/cni/optin"
)

func FuzzConf(f *testing.F) {
	e := &env{bpffs: "/b", run: "/r", state: "/s"}
	f.Add(e.stdin(pluginCall{version: "1.0.0", network: "n", annotations: optedIn, cgroupPath: "/x", prevResult: result("1.0.0")}))
	for _, s := range []string{"", "{}", "null", "[]", `{"prevResult":1,"runtimeConfig":2,"bpffs":3,"cni.dev/attachments":4}`, `{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":null,"cgroupPath":null}}`, `{"bpffs":"/../.."}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := parseConf(stdin)
		if err != nil {
			return
		}
		if d, err := c.dirs(); err == nil {
			for _, dir := range []string{d.bpffs, d.run, d.state} {
				if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == "/" {
					t.Errorf("directory %q", dir)
				}
			}
		}
		if keep, known, err := c.valid(); err == nil && !known && len(keep) > 0 {
			t.Errorf("keeps %v of no key", keep)
		}
		if rt, err := c.runtimeConfig(); err == nil {
			for name := range rt.annotations {
				if !slices.Contains(optin.AnnotationsRead, name) {
					t.Errorf("reads annotation %q", name)
				}
			}
		}
	})
}

func FuzzArgs(f *testing.F) {
	for _, s := range []string{"", "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_UID=b", "a", "a=b=c", ";", "CommonArgs=x", "IgnoreUnknown=maybe", "K8S_POD_NAME="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args, err := parseArgs(s)
		if err == nil && args.K8S_POD_UID != "" && !strings.Contains(s, "K8S_POD_UID="+string(args.K8S_POD_UID)) {
			t.Errorf("%q gives UID %q", s, args.K8S_POD_UID)
		}
	})
}
