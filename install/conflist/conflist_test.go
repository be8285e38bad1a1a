// SPDX-License-Identifier: Apache-2.0

package conflist

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

const (
	ours  = "kmesh-cni"
	entry = `{"type":"kmesh-cni","capabilities":{"cgroupPath":true},"installedBy":{"owner":"a"}}`
)

// bridge is a primary with what an edit through maps would lose: order, white space, a large number, an escape, an unknown key.
const bridge = `{
  "name": "pods",   "cniVersion": "1.0.0",
  "x-unknown": {"z": 1, "a": 12345678901234567890, "h": "\u003c<"},
  "plugins": [
    {
      "type": "bridge",  "bridge": "cni0", "mtu": 1.50e3
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

func parse(t testing.TB, s string) *Conf {
	t.Helper()
	c, err := ParseList([]byte(s))
	if err != nil {
		t.Fatalf("%v\n%s", err, s)
	}
	return c
}

func with(t testing.TB, s, e string) string {
	t.Helper()
	out, err := parse(t, s).With([]byte(e))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestWithKeepsTheRest(t *testing.T) {
	const compact = `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"}]}`
	tests := []struct{ name, in, want string }{
		{"lines", bridge, strings.Replace(bridge, "true}}\n", `true}},
    {
      "type": "kmesh-cni",
      "capabilities": {
        "cgroupPath": true
      },
      "installedBy": {
        "owner": "a"
      }
    }
`, 1)},
		{"compact", compact, strings.Replace(compact, `{"type":"a"}`, `{"type":"a"},`+entry, 1)},
		{"on one line", `{"plugins": [ {"type":"a"} ], "name":"n"}`, `{"plugins": [ {"type":"a"}, ` + entry + ` ], "name":"n"}`},
		{"tabs", "{\n\t\"name\": \"n\",\n\t\"plugins\": [\n\t\t{\"type\":\"a\"}\n\t]\n}",
			"{\n\t\"name\": \"n\",\n\t\"plugins\": [\n\t\t{\"type\":\"a\"},\n\t\t{\n\t\t\t\"type\": \"kmesh-cni\",\n\t\t\t\"capabilities\": {\n\t\t\t\t\"cgroupPath\": true\n\t\t\t},\n\t\t\t\"installedBy\": {\n\t\t\t\t\"owner\": \"a\"\n\t\t\t}\n\t\t}\n\t]\n}"},
		{"comma first", "{\"name\":\"n\",\"plugins\":[{\"type\":\"a\"}\n,{\"type\":\"b\"}]}", "{\"name\":\"n\",\"plugins\":[{\"type\":\"a\"}\n,{\"type\":\"b\"}," + entry + "]}"},
		{"escaped keys", `{"n\u0061me":"n","plug\u0069ns":[{"type":"a"}]}`, `{"n\u0061me":"n","plug\u0069ns":[{"type":"a"},` + entry + `]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := with(t, tt.in, entry)
			if got != tt.want {
				t.Fatalf("got\n%s\nwant\n%s", got, tt.want)
			}
			if again := with(t, got, entry); again != got {
				t.Errorf("a second edit changes it:\n%s", again)
			}
			back, err := parse(t, got).Without(ours)
			if err != nil || string(back) != tt.in {
				t.Errorf("without the entry it is %v\n%s\nwant\n%s", err, back, tt.in)
			}
		})
	}
}

func TestWithReplacesInPlace(t *testing.T) {
	old := `{"type": "kmesh-cni", "old": 1}`
	tests := []struct{ name, in, want string }{
		{"in the middle", `{"name":"n","plugins":[{"type":"a"},` + old + `,{"type":"b"}]}`, `{"name":"n","plugins":[{"type":"a"},` + entry + `,{"type":"b"}]}`},
		{"first", `{"name":"n","plugins":[` + old + `, {"type":"a"}]}`, `{"name":"n","plugins":[{"type":"a"},` + entry + `]}`},
		{"twice", `{"name":"n","plugins":[{"type":"a"},` + old + `,{"type":"b"},` + old + `]}`, `{"name":"n","plugins":[{"type":"a"},{"type":"b"},` + entry + `]}`},
		{"first and second", `{"name":"n","plugins":[` + old + `,` + old + `,{"type":"a"}]}`, `{"name":"n","plugins":[{"type":"a"},` + entry + `]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := with(t, tt.in, entry); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestAlone(t *testing.T) {
	c := parse(t, `{"name":"n","plugins":[`+entry+`]}`)
	if _, err := c.With([]byte(entry)); !errors.Is(err, ErrAlone) {
		t.Errorf("With: %v", err)
	}
	if _, err := c.Without(ours); !errors.Is(err, ErrAlone) {
		t.Errorf("Without: %v", err)
	}
	single, err := ParseSingle([]byte(`{"name":"n","type":"kmesh-cni"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := single.Chained([]byte(entry)); !errors.Is(err, ErrAlone) {
		t.Errorf("Chained: %v", err)
	}
}

func TestChained(t *testing.T) {
	const in = ` {"cniVersion": "0.3.1", "name":"pods", "type":"bridge", "mtu": 1.5e3, "x": {"b":1,"a":2}} `
	c, err := ParseSingle([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.Chained([]byte(entry))
	if err != nil {
		t.Fatal(err)
	}
	list := parse(t, string(out))
	if list.Name != "pods" || list.CNIVersion != "0.3.1" || len(list.Plugins) != 2 || string(list.Plugins[0].Raw) != strings.TrimSpace(in) {
		t.Errorf("made\n%s", out)
	}
	// libcni's own way from a conf to a list gives the same primary.
	//lint:ignore SA1019 the single configurations that runtimes still load are read by nothing else
	conf, err := libcni.ConfFromBytes([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 the single configurations that runtimes still load are read by nothing else
	want, err := libcni.ConfListFromConf(conf)
	if err != nil {
		t.Fatal(err)
	}
	got, err := libcni.ConfListFromBytes(out)
	if err != nil || got.Name != want.Name || got.CNIVersion != want.CNIVersion || !bytes.Equal(got.Plugins[0].Bytes, want.Plugins[0].Bytes) {
		t.Errorf("libcni reads %+v (%v), of the conf itself %+v", got, err, want)
	}
}

func TestSpeaks(t *testing.T) {
	versions := []string{"0.3.1", "1.0.0", "1.1.0"}
	tests := []struct {
		head string
		ok   bool
	}{
		{`"cniVersion":"1.0.0"`, true}, {`"cniVersion":"0.3.1"`, true}, {`"cniVersion":"0.2.0"`, false}, {`"cniVersion":"2.0.0"`, false},
		{`"x":1`, false}, {`"cniVersion":""`, false}, {`"cniVersions":["0.3.1","1.0.0"]`, true}, {`"cniVersions":["0.3.1","9.0.0"]`, true},
		{`"cniVersion":"0.1.0","cniVersions":["1.0.0"]`, false},
	}
	for _, tt := range tests {
		c := parse(t, `{`+tt.head+`,"name":"n","plugins":[{"type":"a"}]}`)
		if err := c.Speaks(versions); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.head, err)
		}
	}
}

func TestRefused(t *testing.T) {
	tests := []struct{ name, in, says string }{
		{"empty", "", "empty"},
		{"white space", " \n", "empty"},
		{"no object", "[]", "not a JSON object"},
		{"null", "null", "not a JSON object"},
		{"comment", "// hello\n" + bridge, "not JSON"},
		{"byte order mark", "\ufeff" + bridge, "not JSON"},
		{"not UTF-8", strings.Replace(bridge, "cni0", "cni\xff", 1), "byte 173 is not UTF-8"},
		{"behind it", bridge + "{}", "behind"},
		{"no name", `{"plugins":[{"type":"a"}]}`, `"name" is missing`},
		{"empty name", `{"name":"","plugins":[{"type":"a"}]}`, `"name" is missing`},
		{"name twice", `{"name":"a","name":"b","plugins":[{"type":"a"}]}`, `"name" is there twice`},
		{"name no string", `{"name":1,"plugins":[{"type":"a"}]}`, `"name" is not a string`},
		{"version no string", `{"name":"n","cniVersion":1,"plugins":[{"type":"a"}]}`, `"cniVersion" is not a string`},
		{"no plugins", `{"name":"n"}`, `"plugins" is missing`},
		{"plugins twice", `{"name":"n","plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}`, "twice"},
		{"plugins null", `{"name":"n","plugins":null}`, "not a list"},
		{"plugins empty", `{"name":"n","plugins":[]}`, "empty list"},
		{"plugin no object", `{"name":"n","plugins":[1]}`, "plugin 0"},
		{"plugin null", `{"name":"n","plugins":[null]}`, "plugin 0"},
		{"plugin without type", `{"name":"n","plugins":[{"a":1}]}`, `plugin 0 has no "type"`},
		{"10 MiB", `{"name":"n","plugins":[{"type":"` + strings.Repeat("a", 10<<20) + `"}]}`, "more than 1048576"},
		{"deep", `{"name":"n","x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `,"plugins":[{"type":"a"}]}`, "depth"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseList([]byte(tt.in)); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %q", err, tt.says)
			}
		})
	}
	if _, err := ParseSingle([]byte(bridge)); err == nil || !strings.Contains(err.Error(), ".conflist") {
		t.Errorf("a list as a single conf: %v", err)
	}
}

func TestTruncatedAtEveryByte(t *testing.T) {
	whole := with(t, bridge, entry)
	for i := range len(strings.TrimRight(whole, "\n")) {
		if c, err := ParseList([]byte(whole[:i])); err == nil {
			t.Fatalf("cut at byte %d it is taken as %+v", i, c)
		}
	}
}
