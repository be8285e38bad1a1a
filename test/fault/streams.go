// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"kmesh/test/node"
)

// before changes the plugin's process at a verb.
func before(ctx context.Context, verb string, change func(*node.Call)) context.Context {
	return node.WithHook(ctx, node.Hook{Before: func(c *node.Call) {
		if c.Plugin == "kmesh-cni" && c.Verb == verb {
			change(c)
		}
	}})
}

// streams: what a runtime, or the pipe between, may do to the plugin's standard streams.
func streams(t *trial) {
	b, _ := t.live(node.Options{})
	start := b.holdings()
	var open []*os.File
	closed := func() *os.File {
		r, w, err := os.Pipe()
		t.must(err)
		t.must(r.Close())
		open = append(open, w)
		return w
	}
	full := func() *os.File {
		f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		t.must(err)
		open = append(open, f)
		return f
	}
	big := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		name    string
		change  func(*node.Call)
		code    uint // 0: the ADD succeeds; 1: it fails without a word, as nobody hears it
		anyPod  bool // a pod that did not opt in must not notice, either
		comment string
	}{
		{"stdin empty", func(c *node.Call) { c.Cmd.Stdin = nil }, types.ErrDecodingFailure, false, ""},
		{"stdin garbage", func(c *node.Call) { c.Cmd.Stdin = strings.NewReader("\x00\xff{") }, types.ErrDecodingFailure, false, ""},
		{"half of stdin", func(c *node.Call) { c.Cmd.Stdin = bytes.NewReader(c.Stdin[:len(c.Stdin)/2]) }, types.ErrDecodingFailure, false, ""},
		{"stdin slow", func(c *node.Call) { c.Cmd.Stdin = slowly(c.Stdin) }, 0, true, ""},
		{"annotation of 1 MiB", nil, 0, true, big},
		{"stdout closed", func(c *node.Call) { c.Cmd.Stdout = closed() }, 1, false, ""},
		{"stdout full", func(c *node.Call) { c.Cmd.Stdout = full() }, 1, false, ""},
	} {
		for _, v := range versions {
			change := func(s *node.PodSpec) {
				s.CNIVersion = v
				if c.comment != "" {
					s.Annotations = maps.Clone(s.Annotations)
					if s.Annotations == nil {
						s.Annotations = map[string]string{}
					}
					s.Annotations["example.org/comment"] = c.comment
				}
			}
			hook := c.change
			if hook == nil {
				hook = func(*node.Call) {}
			}
			p := b.prepare(true, change)
			t.count(1)
			began := time.Now()
			err := b.Add(before(b.timed("ADD"), "ADD", hook), p.Sandbox)
			took := time.Since(began)
			var own *types.Error
			ok := false
			switch c.code {
			case 0:
				if ok = err == nil; ok {
					ok = b.governed(p) == nil
				}
			case 1:
				ok = err != nil && !errors.As(err, &own)
			default:
				ok = errors.As(err, &own) && own.Code == c.code
			}
			if !ok || took > 2*time.Second+slowness {
				t.claim("the right answer, within 2 s", false, "%s, %s: %v, after %s", c.name, v, err, ms(took))
			}
			b.del(p)
			if c.anyPod {
				b.bystanderAt(hook, change)
			} else {
				b.bystander()
			}
		}
	}
	for _, f := range open {
		t.must(f.Close())
	}
	b.settled(start)
	slowest := t.res.percentile(100)
	t.claim("nothing hangs for 2 s", slowest < 2*time.Second+slowness, "the slowest took %s, %s of which its input took to come", ms(slowest), ms(slowness))
}

// slowness is how long slow input takes.
const slowness = 500 * time.Millisecond

func slowly(data []byte) io.Reader {
	r, w := io.Pipe()
	go func() {
		const pieces = 20
		for piece := range pieces {
			if _, err := w.Write(data[len(data)*piece/pieces : len(data)*(piece+1)/pieces]); err != nil {
				return
			}
			time.Sleep(slowness / pieces) // this is the fault
		}
		w.Close()
	}()
	return r
}

// bystanderAt is bystander with a change to its plugin's process.
func (b *bed) bystanderAt(change func(*node.Call), specs ...func(*node.PodSpec)) {
	p := b.prepare(false, specs...)
	ctx := b.t.ctx
	b.t.broke(p, b.leftAloneUnder(before(ctx, "ADD", change), p))
	b.t.broke(p, b.DelPod(ctx, p))
}

// collections: GC with each kind of list. libcni, which would end the stale attachments itself, has lost its cache.
func collections(t *trial) {
	b, _ := t.live(node.Options{CNIVersion: "1.1.0"})
	start := b.holdings()
	const newKey, oldKey = "cni.dev/valid-attachments", "cni.dev/attachments"
	list := func(pods ...*node.Pod) json.RawMessage {
		valid := []types.GCAttachment{}
		for _, p := range pods {
			valid = append(valid, types.GCAttachment{ContainerID: p.ContainerID, IfName: node.IfName})
		}
		data, err := json.Marshal(valid)
		t.must(err)
		return data
	}
	for _, c := range []struct {
		name string
		keys func(p []*node.Pod) map[string]json.RawMessage
		kept []bool
	}{
		{"a list of one", func(p []*node.Pod) map[string]json.RawMessage {
			return map[string]json.RawMessage{newKey: list(p[0]), oldKey: list(p[0])}
		}, []bool{true, false, false}},
		{"an empty list", func([]*node.Pod) map[string]json.RawMessage {
			return map[string]json.RawMessage{newKey: list(), oldKey: list()}
		}, []bool{false, false, false}},
		{"neither key", func([]*node.Pod) map[string]json.RawMessage { return nil }, []bool{true, true, true}},
		{"the new key alone", func(p []*node.Pod) map[string]json.RawMessage {
			return map[string]json.RawMessage{newKey: list(p[1])}
		}, []bool{false, true, false}},
		{"the old key alone", func(p []*node.Pod) map[string]json.RawMessage {
			return map[string]json.RawMessage{oldKey: list(p[1])}
		}, []bool{false, true, false}},
		{"both keys, and they differ", func(p []*node.Pod) map[string]json.RawMessage {
			return map[string]json.RawMessage{newKey: list(p[0]), oldKey: list(p[2])}
		}, []bool{true, false, true}},
		{"a null", func([]*node.Pod) map[string]json.RawMessage {
			return map[string]json.RawMessage{newKey: json.RawMessage("null")}
		}, []bool{false, false, false}},
	} {
		for range t.of(4, 1) {
			var pods []*node.Pod
			for range c.kept {
				p, err := b.optedIn(func(s *node.PodSpec) { s.CNIVersion = "1.1.0" })
				t.must(err)
				t.must(b.ForgetResult(p.Sandbox))
				pods = append(pods, p)
			}
			out := b.prepare(false)
			t.broke(out, b.leftAlone(out))
			keys := c.keys(pods)
			err := b.GC(before(b.timed("GC"), "GC", func(call *node.Call) {
				var conf map[string]json.RawMessage
				t.must(json.Unmarshal(call.Stdin, &conf))
				delete(conf, newKey)
				delete(conf, oldKey)
				maps.Copy(conf, keys)
				data, err := json.Marshal(conf)
				t.must(err)
				call.Cmd.Stdin = bytes.NewReader(data)
			}), server(b, out)...)
			if err != nil {
				t.claim("GC succeeds", false, "%s: %v", c.name, err)
			}
			for i, kept := range c.kept {
				if !kept {
					b.gone(pods[i], "GC with "+c.name)
				} else if err := b.governed(pods[i]); err != nil {
					t.claim("exactly the others are removed", false, "%s: pod %d: %v", c.name, i, err)
				}
			}
			t.broke(out, b.untouched(out))
			for _, p := range append(pods, out) {
				b.del(p)
			}
		}
	}
	b.settled(start)
	t.claim("exactly what is not in the list is removed, nothing without a list", true, "%d pods", t.res.n)
}

// server are the sandboxes that libcni itself must keep.
func server(b *bed, others ...*node.Pod) []*node.Sandbox {
	var all []*node.Sandbox
	for _, p := range append(others, b.server) {
		all = append(all, p.Sandbox)
	}
	return all
}
