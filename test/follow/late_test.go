// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"fmt"
	"strings"
	"testing"

	"kmesh/cni/optin"
	"kmesh/helper/pods"
	"kmesh/test/node"
)

// A pod that started before Kmesh was in the chain, and asks for it, is enrolled while it
// runs; one that does not ask is not touched.
func TestEnrolsPodsThatStartedBefore(t *testing.T) {
	for _, withPath := range []bool{true, false} {
		t.Run(fmt.Sprintf("cgroupPath=%t", withPath), func(t *testing.T) {
			b := newBed(t, node.Options{NoKmesh: true, NoCgroupPath: !withPath})
			asks, silent := b.plainPod("asks"), b.plainPod("silent")
			if b.reaches(asks) || b.links(asks) != 0 {
				t.Fatal("the pod is governed before anything was done")
			}
			if err := b.node.Chain(b.ctx); err != nil {
				t.Fatal(err)
			}
			b.tell(apiPod(asks, node.Enrolled()))
			b.tell(apiPod(silent, nil))
			k := b.start()
			if e := b.event(asks, pods.EnrolledLate); !strings.HasSuffix(e.Message, ": 0") {
				t.Errorf("event says %q, want that nothing was open", e.Message)
			}
			if !b.reaches(asks) {
				t.Error("the pod that asks is not governed")
			}
			if b.links(silent) != 0 || b.reaches(silent) {
				t.Errorf("the pod that did not ask has %d links", b.links(silent))
			}
			if n := len(b.events(silent)); n > 0 {
				t.Errorf("the pod that did not ask has %d events", n)
			}
			k.stop()
		})
	}
}

// A namespace's labels reach its pods, and the plugin's set.
func TestFollowsNamespaces(t *testing.T) {
	b := newBed(t, node.Options{})
	quiet, no := b.plainPod("quiet"), b.pod(node.PodSpec{Name: "no", Annotations: map[string]string{node.EnrollAnnotation: "false"}})
	b.tell(apiPod(quiet, nil))
	b.tell(apiPod(no, no.Annotations))
	b.start()

	set := func(want optin.Mode) {
		t.Helper()
		b.eventually("set on disk", func() error {
			s, err := optin.Read(b.node.StateDir)
			if err == nil && s.Namespaces["default"] != want {
				t.Logf("the set is %+v", s)
				return errNotYet
			}
			return err
		})
	}
	b.namespace("default", map[string]string{optin.LabelMode: "kmesh"})
	set(optin.Enroll)
	b.governed(quiet, true)
	if b.reaches(no) {
		t.Error("the pod that says no is governed")
	}
	// By the plugin, which reads the set.
	fresh := b.plainPod("fresh")
	if !b.reaches(fresh) {
		t.Error("a pod that was made after the set is not governed from the start")
	}
	b.tell(apiPod(fresh, nil))

	b.namespace("default", map[string]string{optin.LabelEnroll: "required"})
	set(optin.Required)
	b.governed(no, true)

	b.namespace("default", nil)
	set("")
	for _, p := range []*node.Pod{quiet, no, fresh} {
		b.governed(p, false)
		b.eventually("links of pod "+p.Name, func() error {
			if b.links(p) != 0 {
				return errNotYet
			}
			return nil
		})
	}
	for _, e := range b.events(fresh) {
		if e.Reason == string(pods.EnrolledLate) || e.Reason == string(pods.Enrolled) {
			t.Errorf("a pod that started enrolled has event %s: %s", e.Reason, e.Message)
		}
	}
}
