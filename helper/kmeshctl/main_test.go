// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"kmesh/helper/api"
	apiv1 "kmesh/helper/api/v1"
)

var update = flag.Bool("update", false, "write testdata from what the tables are")

// answers is a helper that holds these.
type answers struct {
	status   *apiv1.StatusResponse
	pods     *apiv1.PodsResponse
	services *apiv1.ServicesResponse
	flows    *apiv1.FlowsResponse
	routes   *apiv1.RoutesResponse
	xds      *apiv1.XdsResponse
	err      error
}

func (a answers) Status(context.Context) (*apiv1.StatusResponse, error)     { return a.status, a.err }
func (a answers) Pods(context.Context) (*apiv1.PodsResponse, error)         { return a.pods, a.err }
func (a answers) Services(context.Context) (*apiv1.ServicesResponse, error) { return a.services, a.err }

func (a answers) Xds(context.Context, *apiv1.XdsRequest) (*apiv1.XdsResponse, error) {
	return a.xds, a.err
}

// Flows leaves the choice of a pod to the helper's own tests, but shows that it came.
func (a answers) Flows(_ context.Context, req *apiv1.FlowsRequest) (*apiv1.FlowsResponse, error) {
	if req.Pod == "shop/none" {
		return &apiv1.FlowsResponse{}, a.err
	}
	return a.flows, a.err
}

func (a answers) Routes(_ context.Context, req *apiv1.RoutesRequest) (*apiv1.RoutesResponse, error) {
	if req.Service == "none" {
		return &apiv1.RoutesResponse{}, a.err
	}
	return a.routes, a.err
}

// serve runs the real server around source until the test ends.
func serve(t *testing.T, source api.Source) (socket string) {
	t.Helper()
	return serveOptions(t, api.Options{Source: source})
}

func serveOptions(t *testing.T, opts api.Options) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	opts.Socket = socket
	s, err := api.Listen(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return socket
}

func kmeshctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code = run(ctx, args, &out, &errs)
	return code, out.String(), errs.String()
}

var scoped = &apiv1.StatusResponse{
	Version: "v0.1.0", Abi: 3, Phase: "live", Generation: 40, Bpffs: "/sys/fs/bpf/kmesh", NodeId: "sidecar~10.0.0.1~kmesh.kmesh-system~x",
	Scopes: []*apiv1.Scope{
		{
			Namespace: "shop", ServiceAccount: "web", Labels: "app=web,tier=gold", Name: "shop/web/app=web,tier=gold", Pods: 3, Live: true,
			Xds: &apiv1.Xds{Kind: "server", Address: "istiod:15012", Connected: true, SinceUnixSeconds: 1700000100}, Config: &apiv1.Config{Version: 2, Published: 2},
		},
		{
			Namespace: "shop", Name: "shop//", Pods: 2, Live: true,
			Xds: &apiv1.Xds{Kind: "server", Address: "istiod:15012", FromDiskUnixSeconds: 1700000000}, Config: &apiv1.Config{Version: 1, Published: 1},
		},
		{
			Namespace: "till", ServiceAccount: "default", Name: "till/default/", Pods: 1,
			Xds: &apiv1.Xds{Kind: "server", Address: "istiod:15012", Connected: true}, Config: &apiv1.Config{Holding: "no word yet about resources of type Listener"},
		},
	},
	ScopesRefused: "the CA: Unauthenticated: request impersonation authentication failure",
	ScopesShared:  2,
	Workloads:     &apiv1.Xds{Kind: "server", Address: "istiod:15012", Connected: true, SinceUnixSeconds: 1700000100, DiskProblem: "no space left on device"},
	Verdicts: []*apiv1.Verdict{
		{Source: "istiod:15012", Type: "Authorization", Resource: "shop/deny-all", Class: "not-enforced", Message: "NOT ENFORCED: connections to shop/web-1 that it denies are let through"},
		{Source: "istiod:15012", Type: "Listener", Resource: "a", Field: "access_log", Class: "not-enforced", Message: "no access log"},
		{Source: "istiod:15012", Type: "Listener", Resource: "b", Field: "access_log", Class: "not-enforced", Message: "no access log"},
		{Source: "istiod:15012", Type: "Listener", Resource: "virtualInbound", Field: "traffic_direction", Class: "unsupported-condition", Message: "inbound traffic is not governed yet: authorization is NOT ENFORCED (shop/allow-web)"},
	},
	Maps: []*apiv1.Map{{Name: "km_frontends", Entries: 95, Capacity: 100}, {Name: "km_names", Entries: 1, Capacity: 100}},
	Pods: &apiv1.PodCounts{Live: 6},
}

var full = answers{
	status: &apiv1.StatusResponse{
		Version: "v0.1.0", UptimeSeconds: 3723, Abi: 1, Phase: "live", Generation: 12,
		Bpffs: "/sys/fs/bpf/kmesh", NodeId: "node-1",
		Xds: &apiv1.Xds{
			Kind: "directory", Address: "/etc/kmesh/xds", Connected: true, LastUpdateUnixSeconds: 1700000000,
			SinceUnixSeconds: 1700000100,
		},
		Config: &apiv1.Config{
			Version: 9, Published: 8, PublishError: "the maps are full: 65537 clusters, room for 65536",
			Resources: []*apiv1.Resource{{State: "live"}, {State: "last-good"}, {State: "live"}},
		},
		Problems: []*apiv1.Verdict{{
			Source: "lds.yaml", Type: "Listener", Resource: "echo", Class: "invalid",
			Field: "address.socket_address.port_value", Message: "0 is no port: give one between 1 and 65535",
		}},
		Verdicts: []*apiv1.Verdict{
			{Source: "lds.yaml", Type: "Listener", Resource: "a", Field: "access_log", Class: "not-enforced", Message: "no\taccess\nlog \x1b[31myet"},
			{Source: "lds.yaml", Type: "Listener", Resource: "b", Field: "filter_chain_match.server_names", Class: "unsupported-condition", Message: "SNI is not read"},
			{Source: "cds.yaml", Type: "Cluster", Resource: "c", Class: "enforced"},
		},
		Maps: []*apiv1.Map{{Name: "km_endpoints", Entries: 3, Capacity: 200000}, {Name: "km_state"}},
		Pods: &apiv1.PodCounts{Live: 1, Severed: 1, Drift: 1, LinksLive: 2, LinksSevered: 1, Draining: 2},
		Kubernetes: &apiv1.Kubernetes{
			Server: "https://10.96.0.1:443", Synced: true, SinceUnixSeconds: 1700000200, Problem: "pods: connection refused",
			Plans: []*apiv1.PodPlan{{Namespace: "shop", Name: "client", What: "drains, and is let go when nothing of it is open any more (open: 3): pod annotation kmesh.net/enroll"}},
		},
	},
	pods: &apiv1.PodsResponse{Pods: []*apiv1.Pod{
		{
			ContainerId: "0123456789abcdef0123456789abcdef", Network: "kmesh", IfName: "eth0",
			Namespace: "shop", Name: "client", Uid: "5c1e", CgroupInode: 18446744073709551615, CgroupPath: "/kubepods/pod5c1e",
			NetnsCookie: 4097, Ifindex: 3, State: "live", Ready: true,
			Links: []*apiv1.Link{
				{Hook: "connect4", Kind: "cgroup", LinkId: 42, ProgId: 17, ProgTag: "a0b1c2d3e4f50617", State: "live"},
				{Hook: "tc_egress", Kind: "tcx", LinkId: 43, ProgId: 18, ProgTag: "b0b1c2d3e4f50617", State: "live"},
			},
		},
		{
			ContainerId: "feed", IfName: "eth0", State: "severed", Drift: []string{"connect4 is severed"},
			Links: []*apiv1.Link{{Hook: "connect4", Kind: "cgroup", LinkId: 7, ProgId: 17, State: "severed"}},
		},
		{ContainerId: "dead", IfName: "eth1", State: "drift", Drift: []string{"enrolment was not finished", "connect4 is not attached"}},
	}, NotEnrolled: []*apiv1.NotEnrolled{
		{ContainerId: "beef", Namespace: "shop", Name: "late", Outcome: "passed", Reason: "kmesh has no configuration yet", UnixSeconds: 1700000000},
	}},
	services: &apiv1.ServicesResponse{Services: []*apiv1.Service{
		{
			Name: "echo",
			Frontends: []*apiv1.Frontend{
				{Prefix: "10.96.0.10/32", Port: 80, Protocol: "TCP"},
				{Prefix: "fd00::10/128", Port: 80, Protocol: "TCP"},
				{Prefix: "10.97.0.0/16", Protocol: "UDP"},
			},
			Clusters: []*apiv1.ServiceCluster{
				{
					Name: "echo-v1", Weight: 80, Share: 0.8, Kind: "endpoints", Policy: "LEAST_REQUEST", MaxConnections: proto.Uint32(100),
					Counters: &apiv1.Counters{Opened: 18446744073709551615, Closed: 5, SentBytes: 5000000000},
					Endpoints: []*apiv1.Endpoint{
						{Address: "10.244.0.2:8080", Health: "HEALTHY", Weight: 1, ActiveConnections: 2},
						{Address: "10.244.0.3:8080", Health: "DRAINING", Priority: 1, Weight: 3, ActiveConnections: 1},
					},
				},
				{Name: "nowhere", Weight: 20, Share: 0.2, Kind: "blackhole", Policy: "ROUND_ROBIN"},
			},
			Refused: map[string]uint64{"no healthy endpoint": 4, "blackhole": 1},
		},
		{Scope: "shop/web", Name: "away", Clusters: []*apiv1.ServiceCluster{{Name: "p", Weight: 1, Share: 1, Kind: "passthrough"}}},
	}},
	routes: &apiv1.RoutesResponse{Routes: []*apiv1.Route{
		{Scope: "shop/web", Service: "echo", VirtualHost: "v", Domains: []string{"echo", "*.echo"}, Name: "echo|v/canary", Match: "prefix /c, header x", Action: "echo-v2", Requests: 18446744073709551615},
		{Service: "echo", VirtualHost: "v", Domains: []string{"*"}, Name: "echo|v/#1", Match: "every path", Action: "echo-v1 (80), echo-v2 (20)"},
	}},
	flows: &apiv1.FlowsResponse{Flows: []*apiv1.Flow{
		{Id: "12.1", NetnsCookie: 4098, Client: "[fd00::9]:40001", Vip: "[fd00::1]:443", State: "syn", Service: "web", Pin: "tls", IdleMs: 3},
		{
			Id: "0.3", Namespace: "shop", Name: "client", NetnsCookie: 4097, Client: "10.244.0.9:40000", Vip: "10.96.0.10:80", State: "open",
			Service: "echo", Cluster: "echo-v2", Route: "echo|v/canary", Requests: 12, Rebinds: 1, IdleMs: 61500,
			Legs: []*apiv1.FlowLeg{
				{Endpoint: "10.244.0.2:8080", Port: 16384, State: "dead", Cluster: "echo-v1", Requests: 3},
				{Endpoint: "10.244.0.3:8080", Port: 16385, State: "open", Current: true, Cluster: "echo-v2", Requests: 9, Dc: 4294967295, Ds: 7},
			},
		},
	}},
}

func TestTables(t *testing.T) {
	socket := serve(t, full)
	empty := serve(t, answers{
		status: &apiv1.StatusResponse{Phase: "loaded", Config: &apiv1.Config{Holding: "nothing has been delivered yet"}}, pods: &apiv1.PodsResponse{}, services: &apiv1.ServicesResponse{}, flows: &apiv1.FlowsResponse{}, routes: &apiv1.RoutesResponse{},
	})
	many := serve(t, answers{
		status: scoped,
		pods: &apiv1.PodsResponse{Pods: []*apiv1.Pod{{
			Namespace: "shop", Name: "web-1", ContainerId: "feed", Network: "kmesh", IfName: "eth0", State: "live", Scope: "shop/web/app=web,tier=gold",
			CgroupInode: 5, NetnsCookie: 6, EnrolledUnixSeconds: 1700000000, Links: []*apiv1.Link{{Hook: "connect4"}},
		}}},
		xds: &apiv1.XdsResponse{Sources: []*apiv1.XdsSource{
			{Name: "shop/web/app=web,tier=gold", Generation: 40, Xds: scoped.Scopes[0].Xds, Resources: []*apiv1.XdsResource{
				{Type: "Cluster", Name: "outbound|80||a", State: "ACKED", Version: "7", Use: "live", SinceUnixSeconds: 1700000000},
				{Type: "Listener", Name: "0.0.0.0_80", State: "NACKED", Version: "6", RejectedVersion: "7", LastError: "port 0", Use: "last-good", SinceUnixSeconds: 1700000001},
			}},
			{Name: "workloads", Xds: scoped.Workloads},
		}},
	})
	good := serve(t, answers{status: &apiv1.StatusResponse{
		Phase: "live", Xds: &apiv1.Xds{Connected: true}, Config: &apiv1.Config{Version: 1, Published: 1}, Pods: &apiv1.PodCounts{Live: 2},
		Verdicts: []*apiv1.Verdict{{Class: "default"}}, Maps: []*apiv1.Map{{Name: "km_slots", Entries: 10, Capacity: 100}},
	}})
	// With --policy-unenforced refuse-enrolment: whom a policy selects is out of the mesh, or on its way.
	refusing := serve(t, answers{
		status: &apiv1.StatusResponse{
			Phase: "live", Workloads: &apiv1.Xds{Connected: true}, Config: &apiv1.Config{Version: 1, Published: 1}, Pods: &apiv1.PodCounts{Live: 2, Draining: 1},
			Verdicts:         scoped.Verdicts[:1],
			RefusesEnrolment: true,
			Kubernetes: &apiv1.Kubernetes{Server: "https://10.96.0.1:443", Synced: true, Plans: []*apiv1.PodPlan{
				{Namespace: "shop", Name: "web-1", What: "drains, and is let go when nothing of it is open any more (open: 3): policies that Kmesh does not enforce select it: shop/deny-all", Policies: []string{"shop/deny-all"}},
				{Namespace: "shop", Name: "web-2", What: "is not enrolled: policies that Kmesh does not enforce select it: shop/deny-all", Policies: []string{"shop/deny-all"}},
			}},
		},
		pods: &apiv1.PodsResponse{NotEnrolled: []*apiv1.NotEnrolled{
			{ContainerId: "beef", Namespace: "shop", Name: "web-2", Outcome: "refused", Reason: "policies that Kmesh does not enforce select it: shop/deny-all", UnixSeconds: 1700000000},
		}},
	})
	for _, tt := range []struct{ name, socket, command string }{
		{"check_refusing", refusing, "check"},
		{"describe_refused", refusing, "describe pod shop/web-2"},
		{"status", socket, "status"},
		{"status_scopes", many, "status"},
		{"check", socket, "check"},
		{"xds", many, "xds"},
		{"xds_unsettled", many, "xds --unsettled --type listener"},
		{"describe_pod", many, "describe pod shop/web-1"},
		{"describe_passed", socket, "describe pod shop/late"},
		{"describe_draining", socket, "describe pod shop/client"},
		{"check_scopes", many, "check"},
		{"check_good", good, "check"},
		{"pods", socket, "pods"},
		{"services", socket, "services"},
		{"flows", socket, "flows"},
		{"routes", socket, "routes"},
		{"status_empty", empty, "status"},
		{"pods_empty", empty, "pods"},
		{"services_empty", empty, "services"},
		{"flows_empty", empty, "flows"},
		{"routes_empty", empty, "routes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := kmeshctl(t, append([]string{"--socket", tt.socket}, strings.Fields(tt.command)...)...)
			if want := map[bool]int{true: exitError}[tt.command == "check" && tt.socket != good]; code != want || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			golden := filepath.Join("testdata", tt.name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(stdout), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if stdout != string(want) {
				t.Errorf("got\n%s\nwant (go test -update writes it)\n%s", stdout, want)
			}
		})
	}
}

// The JSON is protobuf's own mapping, whole, and reads back as the answer.
func TestJSON(t *testing.T) {
	socket := serve(t, full)
	for command, want := range map[string]proto.Message{"status": full.status, "pods": full.pods, "services": full.services, "flows": full.flows, "routes": full.routes} {
		t.Run(command, func(t *testing.T) {
			code, stdout, stderr := kmeshctl(t, command, "-o", "json", "--socket", socket)
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			got := want.ProtoReflect().New().Interface()
			if err := protojson.Unmarshal([]byte(stdout), got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			var plain map[string]any
			if err := json.Unmarshal([]byte(stdout), &plain); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(stdout, "{\n  \"") {
				t.Errorf("not indented: %.40q", stdout)
			}
		})
	}
	_, stdout, _ := kmeshctl(t, "pods", "-o", "json", "--socket", socket)
	for _, field := range []string{`"linkId": 42`, `"progTag": "a0b1c2d3e4f50617"`, `"cgroupInode": "18446744073709551615"`, `"ifindex": 3`, `"netnsPath": ""`} {
		if !strings.Contains(stdout, field) {
			t.Errorf("no %s in\n%s", field, stdout)
		}
	}
}

func TestExitCodes(t *testing.T) {
	working := serve(t, full)
	failing := serve(t, answers{err: errors.New("maps are gone: restart the helper")})

	gone := filepath.Join(t.TempDir(), "s")
	stale := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()

	// Accepts, and closes at once: what somebody sees whom the helper refuses.
	closing := filepath.Join(t.TempDir(), "s")
	c, err := net.Listen("unix", closing)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		for {
			conn, err := c.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()

	tests := []struct {
		name   string
		args   []string
		code   int
		stdout string // part of it
		stderr string
	}{
		{"status", []string{"status", "--socket", working}, exitOK, "v0.1.0", ""},
		{"flows of a pod without any", []string{"flows", "--pod", "shop/none", "--socket", working}, exitOK, "no connection", ""},
		{"flows of no pod's name", []string{"flows", "--pod", "shop", "--socket", working}, exitUsage, "", "NAMESPACE/NAME"},
		{"flows of half a name", []string{"flows", "--pod", "shop/", "--socket", working}, exitUsage, "", "NAMESPACE/NAME"},
		{"routes of one", []string{"routes", "echo", "--socket", working}, exitOK, "echo-v2", ""},
		{"routes of none", []string{"routes", "none", "--socket", working}, exitOK, "no routes", ""},
		{"routes of two", []string{"routes", "a", "b", "--socket", working}, exitUsage, "", `unknown argument "b"`},
		{"help", nil, exitOK, "Exit codes", ""},
		{"help of one", []string{"pods", "--help"}, exitOK, "--socket", ""},
		{"version", []string{"version"}, exitOK, "kmeshctl devel", ""},
		{"the helper fails", []string{"pods", "--socket", failing}, exitError, "", "maps are gone"},
		{"unknown command", []string{"pod"}, exitUsage, "", `unknown argument "pod"`},
		{"unknown flag", []string{"status", "--sokcet", "x"}, exitUsage, "", "unknown flag"},
		{"unknown output", []string{"status", "-o", "yaml"}, exitUsage, "", "use one of table, json"},
		{"too many arguments", []string{"status", "x"}, exitUsage, "", `unknown argument "x"`},
		{"no socket", []string{"status", "--socket", gone}, exitUnreachable, "", "is kmesh-helper running on this node?"},
		{"stale socket", []string{"status", "--socket", stale}, exitUnreachable, "", "start it again"},
		{"refused", []string{"status", "--socket", closing}, exitUnreachable, "", "closed the connection"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := kmeshctl(t, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d (stderr %q)", code, tt.code, stderr)
			}
			if !strings.Contains(stdout, tt.stdout) {
				t.Errorf("stdout %q, want %q in it", stdout, tt.stdout)
			}
			if !strings.Contains(stderr, tt.stderr) || (tt.code == exitOK && stderr != "") {
				t.Errorf("stderr %q, want %q in it", stderr, tt.stderr)
			}
			if tt.code != exitOK && stdout != "" {
				t.Errorf("an error wrote to stdout: %q", stdout)
			}
		})
	}
}
