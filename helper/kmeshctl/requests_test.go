// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"kmesh/helper/api"
	apiv1 "kmesh/helper/api/v1"
)

// traffic is a helper that holds these, and notes what it was asked.
type traffic struct {
	explain *apiv1.ExplainResponse
	packets []*apiv1.TraceRecord
	// open: the trace goes on after the packets.
	open bool
	err  error

	mu    sync.Mutex
	asked proto.Message
	ended chan struct{} // gets one when a trace has ended
}

func (f *traffic) ask(m proto.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = proto.Clone(m)
}

func (f *traffic) last() proto.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *traffic) Explain(_ context.Context, in *apiv1.ExplainRequest) (*apiv1.ExplainResponse, error) {
	f.ask(in)
	return f.explain, f.err
}

func (f *traffic) Trace(ctx context.Context, in *apiv1.TraceRequest, send func(*apiv1.TraceRecord) error) error {
	f.ask(in)
	defer func() { f.ended <- struct{}{} }()
	for _, p := range f.packets {
		if err := send(p); err != nil {
			return err
		}
	}
	if f.open && f.err == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.err
}

func serveTraffic(t *testing.T, f *traffic) (socket string) {
	t.Helper()
	f.ended = make(chan struct{}, 10)
	return serveOptions(t, api.Options{Source: full, Requests: f})
}

func busy() *traffic {
	return &traffic{
		explain: &apiv1.ExplainResponse{
			Request: "GET /half HTTP/1.1", Service: "reviews_9080", Frontend: "10.96.0.11:9080", Http: true,
			Guess:  []*apiv1.ClusterShare{{Name: "v1", Weight: 1, Share: 1, Kind: "endpoints"}},
			Domain: "*.reviews", VirtualHost: 20, NRoutes: 14,
			Outcomes: []*apiv1.Outcome{
				{Share: .25, Index: 2, Route: "reviews/quarter", Action: "forwarded", Clusters: []*apiv1.ClusterShare{
					{Name: "v1", Weight: 80, Share: .8, Kind: "endpoints", Policy: "RANDOM", Endpoints: []string{"10.1.0.1:8080", "10.1.0.2:8080"}},
					{Name: "none", Weight: 20, Share: .2, Kind: "endpoints", Policy: "MAGLEV"},
				}},
				{Share: .75, Index: -1, Action: "answered 404: no route matches"},
			},
			Shadowed: []string{"a", "b", "c", "d", "e", "f", "g"},
		},
		packets: []*apiv1.TraceRecord{
			{AtNanoseconds: 1_000_000_000, Flow: "0.3", Egress: true, Verdict: "forward", TcpFlags: "P.", Seq: 100, NewSeq: 105, Ack: 7, NewAck: 7, Length: 80, Window: 512, State: "open"},
			{AtNanoseconds: 1_000_250_000, Flow: "0.3", Leg: 1, Verdict: "drop", TcpFlags: ".", Seq: 1, NewSeq: 1, Ack: 2, NewAck: 3, Window: 9, State: "open", Pin: "h2", Lost: 3},
		},
	}
}

// checkGolden compares with testdata/NAME.txt.
func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	golden := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant (go test -update writes it)\n%s", got, want)
	}
}

func TestTrafficTables(t *testing.T) {
	socket := serveTraffic(t, busy())
	local := busy()
	local.explain = &apiv1.ExplainResponse{
		Request: "GET / HTTP/1.1", Scope: "shop/web/", Service: "s", Frontend: "0.0.0.0/0 port 80", Http: true, Local: true,
		Outcomes: []*apiv1.Outcome{{Share: 1, Index: -1, Action: `answered 404: no virtual host has "x"`}},
	}
	pod := []string{"shop/web", "GET", "http://10.96.0.11:9080/half"}
	for _, tt := range []struct {
		name, socket string
		args         []string
	}{
		{"explain_installed", socket, append([]string{"explain"}, pod...)},
		{"explain_local", serveTraffic(t, local), append([]string{"explain"}, pod...)},
		{"trace", socket, []string{"trace", "0.3"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := kmeshctl(t, append([]string{"--socket", tt.socket}, tt.args...)...)
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			checkGolden(t, tt.name, stdout)
		})
	}
}

// What the command line says is what the helper is asked, and its answer in JSON is
// the answer.
func TestTrafficQuestions(t *testing.T) {
	f := busy()
	socket := serveTraffic(t, f)
	for name, tt := range map[string]struct {
		args  []string
		asked proto.Message
		want  proto.Message // nil: not a single answer
	}{
		"explain": {[]string{"explain", "shop/web", "PUT", "http://Reviews:9080/a?b", "-H", "X-A: 1"}, &apiv1.ExplainRequest{
			Namespace: "shop", Name: "web", Port: 9080, Head: []byte("PUT /a?b HTTP/1.1\r\nHost: Reviews:9080\r\nX-A: 1\r\n\r\n"),
		}, f.explain},
		"explain at an address": {[]string{"explain", "shop/web", "GET", "http://x/", "--address", "10.0.0.1"}, &apiv1.ExplainRequest{
			Namespace: "shop", Name: "web", Port: 80, Address: "10.0.0.1", Head: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		}, f.explain},
		"trace a pod":  {[]string{"trace", "shop/web"}, &apiv1.TraceRequest{Namespace: "shop", Name: "web"}, nil},
		"trace a flow": {[]string{"trace", "0.3"}, &apiv1.TraceRequest{Flow: "0.3"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := kmeshctl(t, append([]string{"--socket", socket, "-o", "json"}, tt.args...)...)
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			if !proto.Equal(f.last(), tt.asked) {
				t.Errorf("asked %v, want %v", f.last(), tt.asked)
			}
			if tt.want == nil {
				return
			}
			got := tt.want.ProtoReflect().New().Interface()
			if err := protojson.Unmarshal([]byte(stdout), got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestTrafficExitCodes(t *testing.T) {
	failing := func(err error) string { f := busy(); f.err, f.packets = err, nil; return serveTraffic(t, f) }
	missing := failing(status.Error(codes.NotFound, "no pod shop/web"))
	ambiguous := failing(status.Error(codes.InvalidArgument, "2 services: say with --address"))
	broken := failing(errors.New("read km_flows: no"))
	old := serve(t, full) // a helper that has no such answers
	gone := filepath.Join(t.TempDir(), "s")
	explain := []string{"explain", "shop/web", "GET", "http://x/"}
	for _, tt := range []struct {
		name, socket string
		args         []string
		code         int
		stderr       string
	}{
		{"no such pod", missing, explain, exitError, "no pod shop/web"},
		{"no such flow", missing, []string{"trace", "1.1"}, exitError, "no pod"},
		{"ambiguous", ambiguous, explain, exitUsage, "--address"},
		{"broken", broken, explain, exitError, "km_flows"},
		{"broken trace", broken, []string{"trace", "1.1"}, exitError, "km_flows"},
		{"old helper, explain", old, explain, exitError, "older than this kmeshctl"},
		{"old helper, trace", old, []string{"trace", "1.1"}, exitError, "older than this kmeshctl"},
		{"no helper", gone, []string{"trace", "1.1"}, exitUnreachable, "is kmesh-helper running"},
		{"bad pod to trace", old, []string{"trace", "/web"}, exitUsage, "NAMESPACE/NAME"},
		{"nothing to trace", old, []string{"trace"}, exitUsage, "one pod or flow"},
		{"bad count", old, []string{"trace", "1.1", "--count", "-1"}, exitUsage, "negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := kmeshctl(t, append([]string{"--socket", tt.socket}, tt.args...)...)
			if code != tt.code || !strings.Contains(stderr, tt.stderr) || stdout != "" {
				t.Errorf("exit code %d, want %d; stdout %q, stderr %q, want %q in it", code, tt.code, stdout, stderr, tt.stderr)
			}
		})
	}
}

// lines tells when the first one was written.
type lines struct {
	mu    sync.Mutex
	text  bytes.Buffer
	begun func()
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun()
	return l.text.Write(b)
}

// TestTraceEnds: after so many packets, or when it is interrupted, which is no error;
// the helper's end of it ends too, and takes the flags off.
func TestTraceEnds(t *testing.T) {
	f := busy()
	f.open = true
	socket := serveTraffic(t, f)
	ended := func() {
		t.Helper()
		select {
		case <-f.ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the helper still traces")
		}
	}
	code, stdout, stderr := kmeshctl(t, "--socket", socket, "trace", "0.3", "--count", "1", "-o", "json")
	if code != exitOK || stderr != "" || strings.Count(stdout, "\n") != 1 {
		t.Errorf("exit code %d, stderr %q, stdout %q, want one line", code, stderr, stdout)
	}
	var one apiv1.TraceRecord
	if err := protojson.Unmarshal([]byte(stdout), &one); err != nil || !proto.Equal(&one, f.packets[0]) {
		t.Errorf("got %v, %v", &one, err)
	}
	ended()

	ctx, interrupt := context.WithCancel(context.Background())
	defer interrupt()
	out := &lines{begun: interrupt}
	var errs bytes.Buffer
	if code := run(ctx, []string{"--socket", socket, "trace", "0.3"}, out, &errs); code != exitOK || errs.Len() != 0 {
		t.Errorf("interrupted: exit code %d, stderr %q", code, errs.String())
	}
	ended()
}
