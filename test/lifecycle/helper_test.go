// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cnitypes "github.com/containernetworking/cni/pkg/types"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"kmesh/bpf"
	"kmesh/helper/controller"
	"kmesh/netns"
	"kmesh/test/meshfile"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// TestBeforeTheFirstHelper: an opted-in pod waits with a code of its own, others do
// not; once the helper has been there, the pod starts.
func TestBeforeTheFirstHelper(t *testing.T) {
	b := newBed(t) // two pods that are not opted in start without a helper
	_, err := b.node.AddPod(b.ctx, node.PodSpec{Name: "early", Annotations: node.Enrolled()})
	var e *cnitypes.Error
	if !errors.As(err, &e) || e.Code != 110 {
		t.Fatalf("an opted-in pod before the first helper: %v, want code 110", err)
	}
	b.write("mesh.yaml", b.meshOf(1, 0))
	b.start()
	b.only(b.client("early"), "v1", 5)
}

// TestKilledHelper: with the helper dead by SIGKILL, open connections and new ones
// go on, a new pod is enrolled; the next helper changes nothing of it, and goes on
// counting.
func TestKilledHelper(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	h := b.start()
	client := b.client("client")
	open := b.keep(client)
	links := b.links()
	h.Kill9()
	open.works("helper dead")
	b.only(client, "v1", 50)
	late := b.client("late")
	b.only(late, "v1", 50)
	b.start()
	open.works("helper back")
	b.only(client, "v1", 5)
	now := b.links()
	for hook, id := range links {
		if now[hook] != id {
			t.Errorf("link of %s was %v, is %v after the restart", hook, id, now[hook])
		}
	}
	metrics := b.metric(`kmesh_tcp_connections_opened_total{cluster="v1",scope="",service="echo"}`)
	if metrics != 106 {
		t.Errorf("%v connections are counted, 106 were made", metrics)
	}
}

// links are the ids of all links by pod and hook.
func (b *bed) links() map[string]any {
	b.Helper()
	ids := make(map[string]any)
	pods, _ := b.ctl("pods")["pods"].([]any)
	for _, p := range pods {
		pod := p.(map[string]any)
		for _, l := range pod["links"].([]any) {
			link := l.(map[string]any)
			ids[fmt.Sprint(pod["name"], "/", link["hook"])] = link["linkId"]
		}
	}
	if len(ids) == 0 {
		b.Fatal("kmeshctl shows no link")
	}
	return ids
}

// metric reads one sample of /metrics.
func (b *bed) metric(sample string) float64 {
	b.Helper()
	body, err := b.node.Get(b.ctx, "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, sample+" "); ok {
			var v float64
			if _, err := fmt.Sscan(rest, &v); err != nil {
				b.Fatal(err)
			}
			return v
		}
	}
	b.Fatalf("/metrics has no %s:\n%s", sample, body)
	return 0
}

// TestChangesApplyWithinASecond, of an atomic rename.
func TestChangesApplyWithinASecond(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	b.start()
	client := b.client("client")
	open := b.keep(client)
	for i, server := range []string{"v2", "v1", "v2", "v1"} {
		b.write("mesh.yaml", b.meshOf((i)%2, (i+1)%2))
		if took := b.until(client, server); took > time.Second {
			t.Errorf("change %d took %v, want 1 s at most", i, took)
		}
		b.only(client, server, 20)
		open.works("after a change")
	}
}

// TestStopsInTime: SIGTERM ends the helper within 2 s (Stop checks that), under
// traffic, and nothing changes.
func TestStopsInTime(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	h := b.start()
	client := b.client("client")
	open := b.keep(client)
	if err := h.Stop(b.ctx); err != nil {
		t.Fatal(err)
	}
	open.works("helper stopped")
	b.only(client, "v1", 20)
}

// TestBadFiles: an error that names file and field; the last good state serves on,
// also through a restart; a good file heals it.
func TestBadFiles(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	h := b.start()
	client := b.client("client")
	good := b.meshOf(1, 0)
	change := strings.NewReplacer("weight: 1}", "weight: 0}", "weight: 0}", "weight: 1}").Replace(good)
	for _, c := range []struct{ name, content, want string }{
		{"syntax", change + "  : : }", "yaml"},
		{"unknown type", strings.Replace(change, "config.cluster.v3.Cluster\n", "config.cluster.v3.Clutter\n", 1), "Clutter"},
		{"unknown field", strings.Replace(change, "lb_policy", "lb_polizei", 1), "lb_polizei"},
		{"dangling cluster", strings.Replace(change, "{name: v2, weight: 1}", "{name: v3, weight: 1}", 1), "v3"},
		{"duplicate names", change + meshfile.Cluster("v1", b.v2), "v1"},
		// The cluster keeps its last good version; the rest of the file is used.
		{"port 0", strings.Replace(good, "port_value: 8080", "port_value: 0", 1), "port_value"},
		{"weight overflow", strings.Replace(strings.Replace(change, "weight: 1}", "weight: 4294967295}", 1), "weight: 0}", "weight: 4294967295}", 1), "weight"},
		{"not a resource", "  - 17\n", "resources"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := *b
			b.T = t
			b.write("mesh.yaml", c.content)
			var said string
			b.eventually("the error", func() bool {
				said = fmt.Sprint(b.ctl("status")["problems"])
				return strings.Contains(said, "mesh.yaml") && strings.Contains(said, c.want)
			})
			b.only(client, "v1", 20)
			if c.name == "dangling cluster" || c.name == "syntax" {
				h.Kill9()
				h = b.start()
				b.only(client, "v1", 20)
			}
			b.write("mesh.yaml", good)
			b.eventually("healing", func() bool {
				left, _ := b.ctl("status")["problems"].([]any)
				return len(left) == 0
			})
			b.only(client, "v1", 5)
		})
	}
}

// TestEmptyDirectoryAtRestart: a directory that lost its files while the helper was
// away, or is not mounted yet, takes nothing away; files that are removed while the
// helper looks on do.
func TestEmptyDirectoryAtRestart(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	b.start().Kill9()
	client := b.client("client")
	if err := os.Remove(filepath.Join(b.xds, "mesh.yaml")); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.only(client, "v1", 20)
	if holding := fmt.Sprint(b.ctl("status")["config"].(map[string]any)["holding"]); !strings.Contains(holding, "neither listeners nor clusters") {
		t.Errorf("status says %q", holding)
	}
	b.write("mesh.yaml", b.meshOf(0, 1))
	b.until(client, "v2")
	if err := os.Remove(filepath.Join(b.xds, "mesh.yaml")); err != nil {
		t.Fatal(err)
	}
	b.eventually("the mesh is empty", func() bool { return len(b.dialN(client, 1).Servers) == 0 })
}

// TestPodsShowsKernelTruth: all hooks, live, on the pod's own cgroup.
func TestPodsShowsKernelTruth(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	b.start()
	client := b.client("client")
	pods := b.ctl("pods")["pods"].([]any)
	if len(pods) != 1 {
		t.Fatalf("%d pods, want the enrolled one alone", len(pods))
	}
	pod := pods[0].(map[string]any)
	if pod["name"] != "client" || pod["cgroupInode"] != fmt.Sprint(client.CgroupID) || pod["state"] != "live" {
		t.Errorf("got %v", pod)
	}
	seen := make(map[string]bool)
	for _, l := range pod["links"].([]any) {
		link := l.(map[string]any)
		if link["state"] != "live" || link["progTag"] == nil || link["linkId"] == nil {
			t.Errorf("link %v", link)
		}
		seen[link["hook"].(string)] = true
	}
	want := make(map[string]bool)
	for _, h := range append(append([]bpf.Hook(nil), bpf.CgroupHooks...), bpf.TCHooks...) {
		want[h.Name] = true
	}
	if !maps.Equal(seen, want) {
		t.Errorf("hooks %v, want %v", seen, want)
	}
}

// TestUpgradeOfPrograms: a helper with other programs replaces the pinned ones and
// updates every pod's links in place; link ids stay.
func TestUpgradeOfPrograms(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	h := b.start()
	if err := h.Stop(b.ctx); err != nil {
		t.Fatal(err)
	}
	// An older version: its connect4 passes everything.
	path := bpf.ProgPath(b.node.BPFFS, "connect4")
	old, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "connect4", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect,
		License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), old.Pin(path), old.Close()); err != nil {
		t.Fatal(err)
	}
	client := b.client("client")
	if c := b.dialN(client, 1); len(c.Servers) != 0 {
		t.Fatalf("the old program governs: %v", c.Servers)
	}
	nn := netns.New(netns.Options{BPFFS: b.node.BPFFS, RunDir: b.node.RunDir})
	ids := func() map[string]uint32 {
		pods, err := nn.List(b.ctx)
		if err != nil || len(pods) != 1 {
			t.Fatalf("%v, %v", pods, err)
		}
		m := make(map[string]uint32)
		for _, l := range pods[0].Links {
			m[l.Hook] = l.ID
		}
		return m
	}
	before := ids()
	b.start()
	b.until(client, "v1")
	if after := ids(); !maps.Equal(before, after) {
		t.Errorf("links %v before the upgrade, %v after", before, after)
	}
}

// TestOneHelperAtATime on one run directory; nothing of the first is disturbed.
func TestOneHelperAtATime(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	b.start()
	if _, err := controller.Lock(b.node.RunDir); err == nil || !strings.Contains(err.Error(), "another kmesh-helper") {
		t.Errorf("a second helper's lock: %v", err)
	}
	if err := b.node.Uninstall(b.ctx); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("uninstall beside a running helper: %v", err)
	}
	// Another run directory does not make the maps another's.
	if err := controller.Uninstall(b.ctx, b.node.BPFFS, t.TempDir(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "another kmesh-helper writes the maps") {
		t.Errorf("uninstall with another run directory: %v", err)
	}
	b.only(b.client("client"), "v1", 5)
}

// TestUninstallLeavesOtherFiles in directories that others use too.
func TestUninstallLeavesOtherFiles(t *testing.T) {
	run, state := t.TempDir(), t.TempDir()
	for _, dir := range []string{run, state} {
		if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := controller.Uninstall(t.Context(), filepath.Join(t.TempDir(), "no-bpffs"), run, state); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{run, state} {
		if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 || filepath.Base(left[0]) != "other" {
			t.Errorf("%s holds %v (%v), want the other's file alone", dir, left, err)
		}
	}
}

// TestUninstall removes everything; open connections go on, new ones are no longer
// governed, and the pod's DEL still succeeds (the node checks that).
func TestUninstall(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	h := b.start()
	client := b.client("client")
	open := b.keep(client)
	if err := h.Stop(b.ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.node.Uninstall(b.ctx); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{b.node.BPFFS, b.node.RunDir, b.node.StateDir} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
	if n, err := node.Attached(client.CgroupPath); err != nil || len(n) != 0 {
		t.Errorf("programs on the pod's cgroup: %v, %v", n, err)
	}
	res, err := client.Exchange(b.ctx, wire.Exchange{Handle: open.handle})
	if err != nil || res.Server != "v1" {
		t.Errorf("the open connection: %+v, %v", res, err)
	}
	if c := b.dialN(client, 1); len(c.Servers) != 0 {
		t.Errorf("the VIP still leads to %v", c.Servers)
	}
}

// TestTwoNodesOnOneMachine do not collide.
func TestTwoNodesOnOneMachine(t *testing.T) {
	a, b := newBed(t), newBed(t)
	a.write("mesh.yaml", a.meshOf(1, 0))
	b.write("mesh.yaml", b.meshOf(0, 1))
	a.start()
	b.start()
	a.only(a.client("client"), "v1", 20)
	b.only(b.client("client"), "v2", 20)
}

// TestMissingDirectory is a clear error at once.
func TestMissingDirectory(t *testing.T) {
	b := newBed(t)
	b.xds = filepath.Join(b.xds, "nowhere")
	_, err := b.node.StartHelper(b.ctx, "--xds-dir", b.xds)
	if err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("got %v, want an error that names the directory", err)
	}
}
