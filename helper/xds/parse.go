// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"kmesh/helper/mesh"
)

// maxFileSize bounds one file: it is read whole, and ten thousand services with
// their endpoints need less.
const maxFileSize = 64 << 20

// parsed is one file that could be read.
type parsed struct {
	resources []Resource
}

// parseFile reads one DiscoveryResponse in YAML or JSON. It returns what is wrong
// with it, by field; a file with anything wrong is not used at all.
func parseFile(path string, data []byte) (*parsed, []mesh.Verdict) {
	p := &fileParser{path: path}
	out := p.parse(data)
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return out, nil
}

type fileParser struct {
	path     string
	problems []mesh.Verdict
}

func (p *fileParser) bad(field, format string, args ...any) {
	p.problems = append(p.problems, mesh.Verdict{
		Source: p.path, Field: field, Class: mesh.Invalid, Message: fmt.Sprintf(format, args...),
	})
}

func (p *fileParser) parse(data []byte) *parsed {
	raw, ok := p.json(data)
	if !ok {
		return nil
	}
	resp := &discoveryv3.DiscoveryResponse{}
	if err := protojson.Unmarshal(raw, resp); err != nil {
		p.syntax(raw, err)
		return nil
	}
	out := &parsed{}
	first := map[string]int{}
	for i, a := range resp.GetResources() {
		at := "resources[" + strconv.Itoa(i) + "]"
		typeURL, res, err := decode(a)
		if err != nil {
			p.bad(at, "%v", clean(err))
			continue
		}
		if want := resp.GetTypeUrl(); want != "" && want != typeURL {
			p.bad(at, "has type %q, but the file's type_url is %q", typeURL, want)
		}
		key := typeURL + "/" + res.Name
		if j, dup := first[key]; dup {
			p.problems = append(p.problems, mesh.Verdict{
				Source: p.path, Type: short(typeURL), Resource: res.Name, Field: at, Class: mesh.Invalid,
				Message: fmt.Sprintf("duplicate name: resources[%d] of this file has it too: remove one", j),
			})
		}
		first[key] = i
		res.Version, res.Source, res.Path = resp.GetVersionInfo(), p.path, at
		for _, e := range validate(res.Message, "") {
			p.problems = append(p.problems, mesh.Verdict{
				Source: p.path, Type: short(typeURL), Resource: res.Name, Field: join(at, e.field),
				Class: mesh.Invalid, Message: e.reason,
			})
		}
		res.typeURL = typeURL
		out.resources = append(out.resources, res)
	}
	return out
}

// json returns the file as JSON.
func (p *fileParser) json(data []byte) ([]byte, bool) {
	if len(bytes.TrimSpace(data)) == 0 {
		p.bad("", "is empty: write a DiscoveryResponse (resources: []), or remove the file")
		return nil, false
	}
	if strings.HasSuffix(p.path, ".json") {
		return data, true
	}
	if documents(data) > 1 {
		p.bad("", "has more than one YAML document: write one DiscoveryResponse per file")
		return nil, false
	}
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		msg := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: unmarshal errors:\n")), " ")
		p.bad(lineOf(msg), "is not YAML: %s", msg)
		return nil, false
	}
	if string(raw) == "null" {
		p.bad("", "is empty: write a DiscoveryResponse (resources: []), or remove the file")
		return nil, false
	}
	return raw, true
}

// documents counts the YAML documents in a file: the markers stand at the
// beginning of a line, whatever surrounds them.
func documents(data []byte) int {
	n, content := 0, false
	for _, line := range bytes.Split(data, []byte("\n")) {
		line = bytes.TrimRight(line, "\r")
		marker := bytes.Equal(line, []byte("---")) || bytes.HasPrefix(line, []byte("--- ")) || bytes.HasPrefix(line, []byte("---\t"))
		switch {
		case marker:
			if content {
				n++
			}
			content = len(bytes.TrimSpace(line[3:])) > 0
		case len(bytes.TrimSpace(line)) == 0, bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")), line[0] == '%',
			bytes.Equal(line, []byte("...")):
		default:
			content = true
		}
	}
	if content {
		n++
	}
	return n
}

var yamlLine = regexp.MustCompile(`line \d+`)

// lineOf takes the place out of a YAML error.
func lineOf(msg string) string { return yamlLine.FindString(msg) }

var position = regexp.MustCompile(`\(line (\d+):(\d+)\)`)

// syntax reports a decoding error with the path of the field it points to.
func (p *fileParser) syntax(raw []byte, err error) {
	msg := clean(err)
	m := position.FindStringSubmatch(msg)
	if m == nil {
		p.bad("", "%s", msg)
		return
	}
	line, _ := strconv.Atoi(m[1])
	column, _ := strconv.Atoi(m[2])
	v := mesh.Verdict{Source: p.path, Class: mesh.Invalid, Message: msg}
	if strings.HasSuffix(p.path, ".json") {
		v.Field = m[0][1 : len(m[0])-1]
	} else {
		// The position is one in the converted text, which nobody has seen.
		v.Message = strings.TrimLeft(strings.Replace(msg, m[0], "", 1), ": ")
		v.Message = strings.Replace(v.Message, " : ", ": ", 1)
	}
	if path := pathAt(raw, offsetOf(raw, line, column)); path != "" {
		v.Field = path
	}
	if strings.Contains(msg, "for string field") {
		v.Message += " (YAML reads an unquoted y, n, yes, no, on, off, or a number, as no string: quote it)"
	}
	v.Resource = resourceAt(raw, v.Field)
	p.problems = append(p.problems, v)
}

// clean makes the protobuf library's error text stable: it varies its first
// space on purpose.
func clean(err error) string {
	return strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
}

// offsetOf turns a position (line and column from 1, in characters) into bytes.
func offsetOf(data []byte, line, column int) int {
	at := 0
	for ; line > 1; line-- {
		i := bytes.IndexByte(data[at:], '\n')
		if i < 0 {
			return len(data)
		}
		at += i + 1
	}
	for ; column > 1 && at < len(data); column-- {
		at++
		for at < len(data) && data[at]&0xc0 == 0x80 {
			at++
		}
	}
	return at
}

// level is one open object or array on the way to a token.
type level struct {
	array bool
	index int
	key   string
	isKey bool // the next token is a key
}

// pathAt returns the path of the value or key that covers an offset; "" when the
// text cannot be read that far.
func pathAt(data []byte, offset int) string {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var stack []level
	for {
		tok, err := dec.Token()
		if err != nil {
			return render(stack)
		}
		if d, ok := tok.(json.Delim); ok && (d == ']' || d == '}') {
			if len(stack) == 0 {
				return ""
			}
			stack = stack[:len(stack)-1]
			if int(dec.InputOffset()) > offset {
				return render(stack)
			}
			continue
		}
		if n := len(stack); n > 0 {
			top := &stack[n-1]
			switch {
			case top.array:
				top.index++
			case top.isKey:
				top.key, top.isKey = fmt.Sprint(tok), false
				if int(dec.InputOffset()) > offset {
					return render(stack)
				}
				continue
			default:
				top.isKey = true
			}
		}
		if int(dec.InputOffset()) > offset {
			return render(stack)
		}
		if d, ok := tok.(json.Delim); ok {
			stack = append(stack, level{array: d == '[', index: -1, isKey: d == '{'})
		}
	}
}

// render writes a stack as a path.
func render(stack []level) string {
	path := ""
	for _, l := range stack {
		switch {
		case l.array && l.index >= 0:
			path += "[" + strconv.Itoa(l.index) + "]"
		case !l.array && l.key != "":
			path = join(path, l.key)
		}
	}
	return path
}

var resourceIndex = regexp.MustCompile(`^resources\[(\d+)\]`)

// resourceAt returns the name of the resource that a path leads into, as far as
// it can be told.
func resourceAt(raw []byte, field string) string {
	m := resourceIndex.FindStringSubmatch(field)
	if m == nil {
		return ""
	}
	var file struct {
		Resources []map[string]json.RawMessage `json:"resources"`
	}
	i, err := strconv.Atoi(m[1])
	if err != nil || json.Unmarshal(raw, &file) != nil || i >= len(file.Resources) {
		return ""
	}
	for _, key := range []string{"name", "cluster_name", "clusterName"} {
		var name string
		if json.Unmarshal(file.Resources[i][key], &name) == nil && name != "" {
			return name
		}
	}
	return ""
}

// errTooBig says why a file is not read.
var errTooBig = errors.New("is larger than " + strconv.Itoa(maxFileSize>>20) + " MiB: split it")

// wantedFile tells whether a directory entry is an xDS file.
func wantedFile(name string) bool {
	ext := filepath.Ext(name)
	return !strings.HasPrefix(name, ".") && (ext == ".yaml" || ext == ".json")
}
