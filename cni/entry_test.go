// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"testing"

	"kmesh/cni/entry"
)

// What an installer writes is what the plugin reads.
func TestReadsTheEntry(t *testing.T) {
	c, err := parseConf(entry.Conf{BPFFS: "/b", RunDir: "/r", StateDir: "/s", Stamp: &entry.Stamp{Owner: "a"}}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if d, err := c.dirs(); err != nil || d != (dirs{"/b", "/r", "/s"}) {
		t.Errorf("folders %+v, %v", d, err)
	}
	if c, err = parseConf(entry.Conf{}.Encode()); err != nil {
		t.Fatal(err)
	}
	if d, err := c.dirs(); err != nil || d != (dirs{DefaultBPFFS, DefaultRunDir, DefaultStateDir}) {
		t.Errorf("folders of the least entry %+v, %v", d, err)
	}
	c.Runtime = []byte(`{"` + entry.AnnotationsCapability + `":{"kmesh.net/enroll":"true"},"` + entry.CgroupCapability + `":"/x"}`)
	if rt, err := c.runtimeConfig(); err != nil || rt.annotations["kmesh.net/enroll"] != "true" || rt.cgroupPath != "/x" {
		t.Errorf("what the capabilities bring is read as %+v, %v", rt, err)
	}
}
