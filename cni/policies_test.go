// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kmesh/bpf"
	"kmesh/cni/optin"
	"kmesh/netns"
)

// Whom policies keep out that are not enforced starts as a pod that did not opt in: byte for byte, without a program or a bpf(2) call, whatever the mesh's
// state is; and it is on record why.
func TestKeptOutByPolicies(t *testing.T) {
	opted := map[string]optin.Mode{"shop": optin.Enroll}
	for name, set := range map[string]optin.Set{
		"everywhere":    {Namespaces: opted, Policies: optin.Policies{Everywhere: []string{"shop/lock"}}},
		"the namespace": {Namespaces: opted, Policies: optin.Policies{Namespaces: map[string][]string{"shop": {"shop/lock"}}}},
		"some pods":     {Namespaces: opted, Policies: optin.Policies{Some: map[string][]string{"shop": {"shop/lock"}}}},
		"required":      {Namespaces: map[string]optin.Mode{"shop": optin.Required}, Policies: optin.Policies{Everywhere: []string{"shop/lock"}}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			writeSet(t, e, set)
			for _, v := range versions {
				for _, annotations := range []map[string]string{{}, optedIn, {"kmesh.net/enroll": "true", "kmesh.net/on-unready": "wait"}} {
					c := e.pod("c1", annotations).in(v)
					c.noBPF = true
					if out := e.must("ADD", c); out != c.prevResult {
						t.Errorf("ADD printed %q, want prevResult %q", out, c.prevResult)
					}
					wantOutcome(t, e, "c1", netns.Refused)
					if v >= "0.4.0" {
						e.must("CHECK", c)
					}
					e.must("DEL", c)
					wantOutcome(t, e, "c1", "")
				}
			}
			e.wantLinks(0)
			log, err := os.ReadFile(filepath.Join(e.run, "cni.log"))
			if err != nil || !strings.Contains(string(log), "shop/lock") || !strings.Contains(string(log), "refuse-enrolment") {
				t.Errorf("the log has %s, %v", log, err)
			}
			// The mesh's state is nothing to it, and no more is a run directory that cannot be.
			e.setPhase(bpf.PhaseLoaded)
			c := e.pod("c2", optedIn)
			e.must("ADD", c)
			e.must("DEL", c)
			e.run = filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(e.run, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if out := e.must("ADD", c); out != c.prevResult {
				t.Errorf("ADD printed %q", out)
			}
		})
	}
}

// Policies of others keep nobody out; and when they are gone pods are enrolled again.
func TestPoliciesOfOthers(t *testing.T) {
	e := newEnv(t)
	opted := map[string]optin.Mode{"shop": optin.Enroll}
	writeSet(t, e, optin.Set{Namespaces: opted, Policies: optin.Policies{Namespaces: map[string][]string{"bank": {"bank/lock"}}, Some: map[string][]string{"till": {"till/some"}}}})
	c := e.pod("c1", nil)
	e.must("ADD", c)
	e.wantLinks(nCgroup + nTC)
	e.must("CHECK", c)
	e.must("DEL", c)
	writeSet(t, e, optin.Set{Namespaces: opted, Policies: optin.Policies{Everywhere: []string{"root/lock"}}})
	c = e.pod("c2", nil)
	e.must("ADD", c)
	e.wantLinks(0)
	e.must("DEL", c)
	writeSet(t, e, optin.Set{Namespaces: opted})
	c = e.pod("c3", nil)
	e.must("ADD", c)
	e.wantLinks(nCgroup + nTC)
	e.must("DEL", c)
}

// A set that is broken says nothing of policies either: who opted in by itself is enrolled, which the helper takes back; nobody's creation fails.
func TestPoliciesBroken(t *testing.T) {
	e := newEnv(t)
	writeState(t, e, `{"version":1,"namespaces":{"shop":"enroll"},"policies":{"everywhere":[7]}}`)
	c := e.pod("c1", optedIn)
	e.must("ADD", c)
	e.wantLinks(nCgroup + nTC)
	e.must("DEL", c)
}
