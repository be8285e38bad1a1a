// SPDX-License-Identifier: Apache-2.0

package head

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"os/exec"
	"testing"
	"time"
)

// TestLLHTTP: Node's own HTTP server, which is llhttp, reads nothing otherwise than we do.
func TestLLHTTP(t *testing.T) {
	all := exchanges(t, 60_000)
	for _, target := range []string{"FuzzRequest", "FuzzNetHTTP"} {
		for _, b := range corpus(t, target) {
			if e, ok := newExchange(b); ok {
				all = append(all, e)
			}
		}
	}
	var took, next int
	refused := map[string]int{}
	for i, got := range readByNode(t, all) {
		e := all[i]
		if d := e.difference(got.Readings); d != "" {
			t.Errorf("%q: %s (%s)", e.send, d, got.Refused)
		}
		if len(got.Readings) == 0 {
			refused[got.Refused]++
		}
		took += min(len(got.Readings), 1)
		next += max(len(got.Readings), 1) - 1
	}
	if took < len(all)/4 || next < len(all)/8 {
		t.Errorf("of %d heads %d were taken, and %d sentinels: too few to say anything", len(all), took, next)
	}
	t.Logf("%d heads, %d taken, %d sentinels; refused: %v", len(all), took, next, refused)
}

// nodeResult is a line of what testdata/llhttp.js writes.
type nodeResult struct {
	Readings []reading
	Refused  string
}

// readByNode gives each exchange to Node's server.
func readByNode(t *testing.T, all []exchange) []nodeResult {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("Node is needed (Debian: apt-get install nodejs): %v", err)
	}
	var in bytes.Buffer
	for _, e := range all {
		in.Write(binary.BigEndian.AppendUint32(nil, uint32(len(e.send))))
		cut := byte(0)
		if e.cut || e.request.Upgrade {
			cut = 1
		}
		in.WriteByte(cut)
		in.Write(e.send)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "testdata/llhttp.js")
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("node: %v\n%s", err, stderr.Bytes())
	}
	out := make([]nodeResult, 0, len(all))
	for decoder := json.NewDecoder(&stdout); decoder.More(); {
		var r nodeResult
		if err := decoder.Decode(&r); err != nil {
			t.Fatalf("node: %v", err)
		}
		for i, got := range r.Readings {
			r.Readings[i].Target, r.Readings[i].Host = latin1(got.Target), latin1(got.Host)
		}
		out = append(out, r)
	}
	if len(out) != len(all) {
		t.Fatalf("node: %d results for %d heads", len(out), len(all))
	}
	return out
}

// latin1 turns the characters of a string, which stand for one byte each, into bytes.
func latin1(s string) string {
	var b []byte
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}
