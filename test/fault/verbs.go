// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/containernetworking/cni/libcni"

	"kmesh/test/node"
)

// oddDels: a DEL with little to go by, too early, too often.
func oddDels(t *trial) {
	b, _ := t.live(node.Options{})
	before := b.holdings()
	arg := func(name, value string) func(*libcni.RuntimeConf) {
		return func(rt *libcni.RuntimeConf) {
			for i := range rt.Args {
				if rt.Args[i][0] == name {
					rt.Args[i][1] = value
				}
			}
		}
	}
	keep := func(*node.Pod) error { return nil }
	for _, c := range []struct {
		name   string
		never  bool // without an ADD before
		before func(*node.Pod) error
		change func(*libcni.RuntimeConf)
	}{
		{"three times", false, keep, nil},
		{"first", true, keep, nil},
		{"without netns", false, keep, func(rt *libcni.RuntimeConf) { rt.NetNS = "" }},
		{"netns is gone", false, func(p *node.Pod) error { return b.DropNetns(p.Sandbox) }, nil},
		{"cgroup is gone", false, func(p *node.Pod) error { return os.Remove(p.CgroupPath) }, nil},
		{"without prevResult", false, func(p *node.Pod) error { return b.ForgetResult(p.Sandbox) }, nil},
		{"bogus UID", false, keep, arg("K8S_POD_UID", "../..")},
		{"another pod's UID", false, keep, arg("K8S_POD_UID", node.NewUID())},
		{"without capabilities", false, keep, func(rt *libcni.RuntimeConf) { rt.CapabilityArgs = nil }},
		{"without arguments", false, keep, func(rt *libcni.RuntimeConf) { rt.Args = nil }},
		{"run directory is gone", false, func(*node.Pod) error { return os.RemoveAll(b.records()) }, nil},
	} {
		for _, v := range versions {
			for _, optIn := range []bool{true, false} {
				p := b.prepare(optIn, func(s *node.PodSpec) { s.CNIVersion = v })
				switch {
				case c.never:
					t.count(1)
				case optIn:
					t.must(b.add(p))
				default:
					t.broke(p, b.leftAlone(p))
				}
				t.must(c.before(p))
				for i := range 3 {
					err := b.Del(b.timed("DEL"), p.Sandbox, c.change)
					if !optIn {
						t.broke(p, err)
					} else if err != nil {
						t.claim("DEL succeeds", false, "%s, %s, call %d: %v", c.name, v, i+1, err)
					}
				}
				if _, err := os.Stat(p.CgroupPath); !errors.Is(err, fs.ErrNotExist) {
					b.gone(p, c.name+", "+v)
				}
				b.del(p)
			}
		}
	}
	b.settled(before)
	t.claim("each DEL succeeds", true, "%d DELs", len(t.res.took))
}
