// SPDX-License-Identifier: Apache-2.0

package conflist

import (
	"bytes"
	"errors"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// FuzzList holds every edit of whatever is taken for a conflist against what an edit has to be.
func FuzzList(f *testing.F) {
	for _, s := range []string{
		bridge, `{"name":"n","plugins":[{"type":"a"}]}`, `{"name":"n","plugins":[` + entry + `,{"type":"a"}]}`,
		`{"plugins":[{"type":"a"},` + entry + `],"name":"n","cniVersions":["1.0.0"],"loadOnlyInlinedPlugins":"True"}`, `{"name":"n","plugins":[{"Type":"a","type":"b"} , {"type":"a"}]}`, "{}", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseList(data)
		if err != nil {
			return
		}
		if _, err := libcni.NetworkConfFromBytes(data); err != nil {
			t.Fatalf("taken, but not by libcni: %v", err)
		}
		had := len(c.Find(ours))
		out, err := c.With([]byte(entry))
		if err != nil {
			if had != len(c.Plugins) || !errors.Is(err, ErrAlone) {
				t.Fatalf("cannot be edited: %v", err)
			}
			return
		}
		edited, err := ParseList(out)
		if err != nil {
			t.Fatal(err)
		}
		if len(edited.Find(ours)) != 1 || len(edited.Plugins) != len(c.Plugins)-had+1 || edited.Plugins[0].Type == ours {
			t.Fatalf("the chain is %+v", edited.Plugins)
		}
		if again, err := edited.With([]byte(entry)); err != nil || !bytes.Equal(again, out) {
			t.Fatalf("a second edit gives %v\n%s\nafter\n%s", err, again, out)
		}
		back, err := edited.Without(ours)
		if err != nil {
			t.Fatal(err)
		}
		if had == 0 && !bytes.Equal(back, data) {
			t.Fatalf("what is left is\n%q\nnot\n%q", back, data)
		}
		if clean, err := c.Without(ours); err != nil || had > 0 && len(clean) >= len(data) {
			t.Fatalf("without: %v", err)
		}
	})
}

// FuzzSingle makes a chain of whatever is taken for a single configuration.
func FuzzSingle(f *testing.F) {
	for _, s := range []string{`{"name":"n","type":"a"}`, ` {"cniVersion":"0.3.1","name":"n\u0000","type":"bridge","mtu":1e3}` + "\n", `{"name":"<>&","type":"kmesh-cni"}`, "{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseSingle(data)
		if err != nil {
			return
		}
		out, err := c.Chained([]byte(entry))
		if err != nil {
			if c.Plugins[0].Type != ours {
				t.Fatalf("no chain: %v", err)
			}
			return
		}
		list, err := ParseList(out)
		if err != nil || list.Name != c.Name || list.CNIVersion != c.CNIVersion || len(list.Plugins) != 2 || !bytes.Contains(data, list.Plugins[0].Raw) {
			t.Fatalf("chain %+v, %v\n%s", list, err, out)
		}
	})
}
