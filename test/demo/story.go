// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"kmesh/bpf"
	"kmesh/netns"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// story is the demo's course. Each chapter relies on the ones before.
type story struct {
	*screen
	n           *node.Node
	connections int
	began       time.Time

	mesh   mesh
	xds    string // folder
	helper *node.Helper
	client *node.Pod // opted in
	plain  *node.Pod // not
	kept   wire.Result
	links  map[string]uint32 // of client, by hook, when it was enrolled

	shop    shop
	servers []*server // of the shop's v1 and v2, in this order
	cart    *server
	web     *conn // client's to the shop
}

var vip = netip.MustParseAddrPort("10.96.0.1:80")

func (s *story) tell(ctx context.Context) error {
	defer func() {
		if s.web != nil {
			s.web.Close()
		}
	}()
	for _, chapter := range []func(context.Context) error{
		s.build, s.enrolment, s.theSplit, s.helperDies, s.weightChanges,
		s.requests, s.grayRelease, s.theWay, s.failover, s.rollingRestart, s.routeChanges,
	} {
		if err := chapter(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// build makes the servers, the mesh's files, the helper, and the clients.
func (s *story) build(ctx context.Context) error {
	s.mesh = mesh{Version: 1, VIP: vip, Versions: []version{{Name: "v1", Weight: 80}, {Name: "v2", Weight: 20}}}
	var servers []string
	for _, e := range []struct {
		pod     string
		version int
	}{{"v1-a", 0}, {"v1-b", 0}, {"v2-a", 1}} {
		s.working("adding pod %s", e.pod)
		p, err := s.n.AddPod(ctx, node.PodSpec{Name: e.pod})
		if err != nil {
			return err
		}
		at, _, err := p.Listen(ctx, wire.Listen{Network: wire.TCP, Addr: ":8080", Name: e.pod})
		if err != nil {
			return err
		}
		v := &s.mesh.Versions[e.version]
		v.Endpoints = append(v.Endpoints, netip.AddrPortFrom(p.IP4, at.Port()))
		servers = append(servers, e.pod+" "+p.IP4.String())
	}
	s.xds = filepath.Join(s.n.Dir, "xds")
	if err := os.Mkdir(s.xds, 0o700); err != nil {
		return err
	}
	if err := s.mesh.write(s.xds); err != nil {
		return err
	}
	s.working("starting the helper")
	var err error
	if s.helper, err = s.n.StartHelper(ctx, "--xds-dir", s.xds); err != nil {
		return err
	}
	s.working("adding the clients")
	if s.client, err = s.n.AddPod(ctx, node.PodSpec{Name: "client", Annotations: node.Enrolled()}); err != nil {
		return err
	}
	if s.plain, err = s.n.AddPod(ctx, node.PodSpec{Name: "plain"}); err != nil {
		return err
	}

	s.title("The node, after %.1f s", time.Since(s.began).Seconds())
	s.table(
		[]string{"PART", "WHAT"},
		[]string{"node", s.n.Dir},
		[]string{"network", "bridge and host-local, chained with kmesh-cni, in a namespace of their own"},
		[]string{"helper", fmt.Sprintf("kmesh-helper, process %d, ready after %s", s.helper.Process.Process.Pid, s.helper.ReadyIn.Round(time.Millisecond))},
		[]string{"mesh", "listeners.yaml, clusters.yaml, endpoints.yaml: echo at " + vip.String() + ", v1 80 %, v2 20 %"},
		[]string{"servers", servers[0] + ", " + servers[1] + ", " + servers[2]},
		[]string{"client", s.client.IP4.String() + ", annotated " + node.EnrollAnnotation + `: "true"`},
		[]string{"plain", s.plain.IP4.String() + ", not annotated"},
	)
	return nil
}

// pod finds a pod in the kernel's view of who is enrolled; nil if it is not.
func (s *story) pod(ctx context.Context, p *node.Pod) (*netns.Pod, error) {
	pods, err := netns.New(netns.Options{BPFFS: s.n.BPFFS, RunDir: s.n.RunDir}).List(ctx)
	if err != nil {
		return nil, err
	}
	for _, got := range pods {
		if got.ContainerID == p.ContainerID {
			return &got, nil
		}
	}
	return nil, nil
}

func linkIDs(p *netns.Pod) map[string]uint32 {
	ids := map[string]uint32{}
	if p != nil {
		for _, l := range p.Links {
			ids[l.Hook] = l.ID
		}
	}
	return ids
}

// governed: every hook once, all links live, on this pod's cgroup or interface, and nothing else on the cgroup.
func (s *story) governed(ctx context.Context, p *node.Pod) (*netns.Pod, bool, error) {
	got, err := s.pod(ctx, p)
	if err != nil || got == nil {
		return got, false, err
	}
	good := got.Ready && got.Cgroup == p.CgroupID && len(got.Links) == len(bpf.CgroupHooks)+len(bpf.TCHooks)
	for _, l := range got.Links {
		good = good && l.Live && (l.CgroupID == p.CgroupID || l.CgroupID == 0 && l.Ifindex != 0)
	}
	attached, err := node.Attached(p.CgroupPath)
	for _, h := range bpf.CgroupHooks {
		good = good && attached[h.Attach] == 1
	}
	return got, good, err
}

func (s *story) enrolment(ctx context.Context) error {
	got, good, err := s.governed(ctx, s.client)
	if err != nil {
		return err
	}
	s.title("The enrolment of client, as the kernel has it")
	rows := [][]string{{"HOOK", "LINK", "PROGRAM TAG", "ON"}}
	if got != nil {
		for _, l := range got.Links {
			on := "cgroup " + strconv.FormatUint(l.CgroupID, 10)
			if l.CgroupID == 0 {
				on = fmt.Sprintf("%s (ifindex %d)", got.IfName, l.Ifindex)
			}
			rows = append(rows, []string{l.Hook, strconv.FormatUint(uint64(l.ID), 10), l.ProgramTag, on})
		}
	}
	s.table(rows...)
	s.links = linkIDs(got)
	s.claim(good, "each hook has one live link, on the pod's cgroup (inode %d) or its interface", s.client.CgroupID)

	other, err := s.pod(ctx, s.plain)
	if err != nil {
		return err
	}
	attached, err := node.Attached(s.plain.CgroupPath)
	if err != nil {
		return err
	}
	s.claim(other == nil && len(attached) == 0, "plain has no link, and its cgroup no program")
	return nil
}

// split makes connections to the service from a pod and compares who answered with the weights.
func (s *story) split(ctx context.Context, from *node.Pod, n int) error {
	s.working("%d connections to %s", n, vip)
	got, err := from.DialN(ctx, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: vip.String()}, N: n, Parallel: 4})
	if err != nil {
		return err
	}
	total := 0
	for _, v := range s.mesh.Versions {
		total += v.Weight
	}
	rows := [][]string{{"VERSION", "WEIGHT", "EXPECTED", "GOT", "BY POD"}}
	near, answered := true, 0
	for _, v := range s.mesh.Versions {
		share := float64(v.Weight) / float64(total)
		expected := share * float64(n)
		sum, by := 0, ""
		for _, name := range slices.Sorted(maps.Keys(got.Servers)) {
			if name[:2] == v.Name {
				sum += got.Servers[name]
				by += fmt.Sprintf("%s %d  ", name, got.Servers[name])
			}
		}
		answered += sum
		// Chance is farther off than four standard deviations once in 16,000 runs.
		near = near && math.Abs(float64(sum)-expected) <= 4*math.Sqrt(float64(n)*share*(1-share))
		rows = append(rows, []string{v.Name, fmt.Sprintf("%d %%", v.Weight*100/total), fmt.Sprintf("%.0f", expected), strconv.Itoa(sum), by})
	}
	s.table(rows...)
	s.claim(answered == n && len(got.Errnos) == 0, "all %d connections were answered%s", n, failures(got.Errnos))
	s.claim(near, "the split is within 4 standard deviations of the weights")
	s.claim(len(got.Peers) == 1 && got.Peers[vip.String()] == n, "getpeername said %s, the service, every time", vip)
	return nil
}

func failures(errnos map[string]int) string {
	if len(errnos) == 0 {
		return ""
	}
	return fmt.Sprintf("; failed: %v", errnos)
}

func (s *story) theSplit(ctx context.Context) error {
	s.title("%d connections from client", s.connections)
	if err := s.split(ctx, s.client, s.connections); err != nil {
		return err
	}
	var err error
	if s.kept, err = s.client.Dial(ctx, wire.Dial{Network: wire.TCP, Addr: vip.String(), Keep: true}); err != nil {
		return err
	}
	s.claim(s.kept.Errno == "", "one more connection is kept open (to %s) for later", s.kept.Server)

	res, err := s.plain.Dial(ctx, wire.Dial{Network: wire.TCP, Addr: vip.String()})
	if err != nil {
		return err
	}
	s.claim(res.Errno != "", "plain is not governed: to it, %s is an address that nobody has (%s)", vip, res.Errno)
	direct := s.mesh.Versions[0].Endpoints[0].String()
	if res, err = s.plain.Dial(ctx, wire.Dial{Network: wire.TCP, Addr: direct}); err != nil {
		return err
	}
	s.claim(res.Server == "v1-a" && res.Peer == direct, "and the network is as it was: it reaches v1-a at %s", direct)
	return nil
}

func (s *story) checkKept(ctx context.Context, when string) error {
	res, err := s.client.Exchange(ctx, wire.Exchange{Handle: s.kept.Handle})
	if err != nil {
		return err
	}
	s.claim(res.Errno == "" && res.Server == s.kept.Server && res.Local == s.kept.Local,
		"the kept connection lives on, %s: %s answers, the peer is %s", when, res.Server, res.Peer)
	return nil
}

func (s *story) helperDies(ctx context.Context) error {
	s.title("kill -9 of the helper")
	s.helper.Kill9()
	s.claim(s.helper.ProcessState != nil, "process %d is dead: %v", s.helper.Process.Process.Pid, s.helper.Wait())
	if err := s.checkKept(ctx, "with the helper dead"); err != nil {
		return err
	}
	if err := s.split(ctx, s.client, s.connections); err != nil {
		return err
	}
	s.working("adding a pod")
	began := time.Now()
	late, err := s.n.AddPod(ctx, node.PodSpec{Name: "late", Annotations: node.Enrolled()})
	if err != nil {
		return err
	}
	took := time.Since(began)
	_, good, err := s.governed(ctx, late)
	if err != nil {
		return err
	}
	res, err := late.Dial(ctx, wire.Dial{Network: wire.TCP, Addr: vip.String()})
	if err != nil {
		return err
	}
	s.claim(good && res.Errno == "" && res.Peer == vip.String(),
		"a pod added now is enrolled (CNI ADD of the whole chain: %s) and reaches %s at %s", took.Round(time.Millisecond), res.Server, res.Peer)
	return nil
}

func (s *story) weightChanges(ctx context.Context) error {
	s.title("The helper again, and a new weight in listeners.yaml: v1 20 %%, v2 80 %%")
	s.working("starting the helper")
	var err error
	if s.helper, err = s.n.StartHelper(ctx, "--xds-dir", s.xds); err != nil {
		return err
	}
	got, good, err := s.governed(ctx, s.client)
	if err != nil {
		return err
	}
	s.claim(good && maps.Equal(linkIDs(got), s.links), "the helper is back after %s, and client has the links it had", s.helper.ReadyIn.Round(time.Millisecond))

	s.mesh.Version, s.mesh.Versions[0].Weight, s.mesh.Versions[1].Weight = 2, 20, 80
	took, err := s.publish(ctx, "the new weight", s.mesh.write)
	if err != nil {
		return err
	}
	s.claim(took <= time.Second, "the new weight was in the kernel %s after the file was renamed into place", took.Round(time.Millisecond))
	if err := s.split(ctx, s.client, s.connections); err != nil {
		return err
	}
	return s.checkKept(ctx, "with the new weights")
}

// publish changes the files, waits until the helper has put a newer generation into the kernel, and says how long that
// took.
func (s *story) publish(ctx context.Context, what string, write func(dir string) error) (time.Duration, error) {
	s.working("waiting for %s", what)
	before, err := bpf.ReadState(s.n.BPFFS)
	if err != nil {
		return 0, err
	}
	if err := write(s.xds); err != nil {
		return 0, err
	}
	began := time.Now()
	err = until(ctx, "waiting for "+what+" in the kernel", func() (bool, error) {
		st, err := bpf.ReadState(s.n.BPFFS)
		return st.Generation > before.Generation, err
	})
	return time.Since(began), err
}
