// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"strings"
	"testing"
)

const listenerHead = "- '@type': " + ListenerType + "\n  name: l\n"

func TestParseFile(t *testing.T) {
	tcp := `  filter_chains:
  - filters:
    - name: tcp
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: x
`
	address := "  address: {socket_address: {address: 10.0.0.1, port_value: 80}}\n"
	tests := map[string]struct {
		file  string
		text  string
		field string // of the error; no error if field and msg are empty
		name  string // of the resource in the error
		msg   string
	}{
		"good":               {text: "resources:\n" + listenerHead + address + tcp + "        cluster: c\n"},
		"empty":              {text: "resources: []"},
		"version":            {text: "version_info: '5'\ntype_url: " + ListenerType + "\nresources:\n" + listenerHead + address + tcp + "        cluster: c\n"},
		"wrapped":            {text: "resources: [{'@type': type.googleapis.com/envoy.service.discovery.v3.Resource, name: w, resource: {'@type': " + ClusterType + ", name: w, type: STATIC}}]"},
		"comment and marker": {text: "# hello\n---\nresources: []\n"},
		"camel case":         {text: "versionInfo: '1'\nresources: [{'@type': " + AssignmentType + ", clusterName: c}]"},
		"weight zero":        {text: "resources:\n" + listenerHead + address + tcp + "        weighted_clusters: {clusters: [{name: a, weight: 0}, {name: b, weight: 1}]}\n"},

		"yaml syntax":     {text: "resources: [", field: "line 1", msg: "YAML"},
		"yaml duplicate":  {text: "resources: []\nresources: []\n", field: "line 2", msg: "already"},
		"two documents":   {text: "resources: []\n---\nresources: []\n", msg: "more than one YAML document"},
		"nothing":         {text: " \n", msg: "is empty"},
		"comment only":    {text: "# nothing\n", msg: "is empty"},
		"not an object":   {text: "hello", msg: "unexpected token"},
		"json syntax":     {file: "x.json", text: "{\"resources\": [}\n", field: "resources", msg: "syntax error"},
		"json position":   {file: "x.json", text: "{\"resources\": [],\n \"x\": 5}", field: "x", msg: `line 2:2`},
		"unknown field":   {text: "resources:\n" + listenerHead + address + "  adress: 5\n", field: "resources[0].adress", name: "l", msg: `unknown field "adress"`},
		"nested unknown":  {text: "resources:\n" + listenerHead + address + tcp + "        clutser: c\n", field: "resources[0].filter_chains[0].filters[0].typed_config.clutser", name: "l", msg: "clutser"},
		"unknown type":    {text: "resources: [{'@type': type.googleapis.com/no.such.Type, name: x}]", field: "resources[0].@type", name: "x", msg: "no.such.Type"},
		"no type":         {text: "resources: [{name: x}]", field: "resources[0]", name: "x", msg: "@type"},
		"unwanted type":   {text: "resources: [{'@type': type.googleapis.com/envoy.config.core.v3.Address}]", field: "resources[0]", msg: "not used"},
		"type_url":        {text: "type_url: " + ListenerType + "\nresources: [{'@type': " + ClusterType + ", name: c, type: STATIC}]", field: "resources[0]", msg: "type_url"},
		"no name":         {text: "resources: [{'@type': " + ListenerType + "}]", field: "resources[0]", msg: "no name"},
		"yaml boolean":    {text: "resources: [{'@type': " + ClusterType + ", name: y, type: STATIC}]", field: "resources[0].name", msg: "quote it"},
		"too large":       {text: "resources:\n" + listenerHead + address + tcp + "        weighted_clusters: {clusters: [{name: a, weight: 4294967296}]}\n", field: "resources[0].filter_chains[0].filters[0].typed_config.weighted_clusters.clusters[0].weight", name: "l", msg: "4294967296"},
		"wrong kind":      {text: "resources:\n" + listenerHead + "  address: {socket_address: {address: 10.0.0.1, port_value: eighty}}\n", field: "resources[0].address.socket_address.port_value", name: "l", msg: "eighty"},
		"rule":            {text: "resources: [{'@type': " + ListenerType + ", name: l, address: {socket_address: {address: 10.0.0.1, port_value: 70000}}}]", field: "resources[0].address.socket_address.port_value", name: "l", msg: "65535"},
		"rule inside any": {text: "resources:\n" + listenerHead + address + strings.ReplaceAll(tcp, "stat_prefix: x", "stat_prefix: ''") + "        cluster: c\n", field: "resources[0].filter_chains[0].filters[0].typed_config.stat_prefix", name: "l", msg: "at least 1"},
		"duplicate":       {text: "resources: [{'@type': " + ClusterType + ", name: c, type: STATIC}, {'@type': " + ClusterType + ", name: c, type: STATIC}]", field: "resources[1]", name: "c", msg: "resources[0] of this file"},
		"not ascii":       {text: "resources: [{'@type': " + ClusterType + ", name: 'ünïcödé', type: STATIC, oops: 1}]", field: "resources[0].oops", name: "ünïcödé", msg: "oops"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			file := tc.file
			if file == "" {
				file = "/dir/f.yaml"
			}
			p, problems := parseFile(file, []byte(tc.text))
			if tc.field == "" && tc.msg == "" {
				if len(problems) > 0 || p == nil {
					t.Fatalf("problems: %v", problems)
				}
				for _, r := range p.resources {
					if r.Name == "" || r.Message == nil || r.Source != file || r.Hash == [32]byte{} {
						t.Errorf("resource %+v", r)
					}
				}
				return
			}
			if p != nil || len(problems) == 0 {
				t.Fatal("accepted")
			}
			v := problems[0]
			if v.Source != file || v.Field != tc.field || v.Resource != tc.name || !strings.Contains(v.Message, tc.msg) {
				t.Errorf("got  source %q resource %q field %q message %q\nwant field %q resource %q message with %q", v.Source, v.Resource, v.Field, v.Message, tc.field, tc.name, tc.msg)
			}
		})
	}
}

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{
		"FilterChains[0]": "filter_chains[0]", "Http2ProtocolOptions": "http2_protocol_options",
		"Name": "name", "Map[Key]": "map[Key]", "": "",
	} {
		if got := snake(in); got != want {
			t.Errorf("snake(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzParseFile: no input makes the parser fail in another way than by saying what
// is wrong.
func FuzzParseFile(f *testing.F) {
	for _, s := range []string{
		"", "resources: []", "resources: [{'@type': " + ClusterType + ", name: c}]", "{\"resources\": [{}]}",
		"---\n---\n", "a: &a [*a]", "resources:\n" + listenerHead, "version_info: 5", "\xff\xfe", "%YAML 1.1\n---\nresources: []",
		"resources: [{'@type': " + ListenerType + ", name: l, address: {socket_address: {address: 10.0.0.1, port_value: 99999}}}]",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, text string, asJSON bool) {
		name := "/f.yaml"
		if asJSON {
			name = "/f.json"
		}
		p, problems := parseFile(name, []byte(text))
		if (p == nil) != (len(problems) > 0) {
			t.Fatalf("parsed %v, problems %v", p, problems)
		}
		for _, v := range problems {
			if v.Source != name || v.Message == "" {
				t.Fatalf("problem %+v", v)
			}
		}
		if p != nil {
			for _, r := range p.resources {
				if r.Name == "" || r.Message == nil {
					t.Fatalf("resource %+v", r)
				}
			}
		}
	})
}
