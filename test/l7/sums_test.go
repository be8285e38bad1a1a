// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"kmesh/test/l7/gate"
	"kmesh/test/node"
)

// softwareChecksums turns offload off on a pod's interface: its packets carry whole checksums and single segments, and
// receivers verify them. Between veths none is ever computed otherwise.
func softwareChecksums(p *node.Pod) error { return setOffload(p, 0) }

// setOffload turns the offload of checksums and segmentation on (1) or off (0).
func setOffload(p *node.Pod, on uint32) error {
	return p.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, feature := range []struct{ set, get uint32 }{
			{unix.ETHTOOL_STXCSUM, unix.ETHTOOL_GTXCSUM}, {unix.ETHTOOL_SRXCSUM, unix.ETHTOOL_GRXCSUM},
			{unix.ETHTOOL_STSO, unix.ETHTOOL_GTSO},
		} {
			if _, err := ethtool(fd, feature.set, on); err != nil {
				return err
			}
			if is, err := ethtool(fd, feature.get, 0); err != nil || is != on {
				return fmt.Errorf("feature %#x is %d, want %d (%w)", feature.get, is, on, err)
			}
		}
		return nil
	})
}

// ethtool gives a command with a value, and returns what the value is then.
func ethtool(fd int, cmd, data uint32) (uint32, error) {
	value := struct{ cmd, data uint32 }{cmd: cmd, data: data}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifr.name[:], node.IfName)
	ifr.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return 0, fmt.Errorf("ethtool command %#x: %w", cmd, errno)
	}
	return value.data, nil
}

// wantGoodSums fails if a pod has seen a wrong checksum.
func (b *bed) wantGoodSums(t *testing.T) {
	t.Helper()
	for _, p := range slices.Concat(b.clients, b.pods) {
		if n := tcpCounter(t, p, "InCsumErrors"); n != 0 {
			t.Errorf("pod %s got %d segments with a wrong checksum", p.Name, n)
		}
	}
}

func tcpCounter(t testing.TB, p *node.Pod, name string) uint64 {
	t.Helper()
	n, err := counterOf(p, "snmp", "Tcp", name) // of both families
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// changed are the rows in which the program changes or makes packets: switches, failover, answers of its own, held
// requests, and each thing that it does to a SYN. The full run takes all of the matrix.
var changed = []string{
	"routed per request", "first request elsewhere", "more than four endpoints", "a body with the head",
	"endpoint refuses", "re-bind: endpoint refuses", "every endpoint refuses", "no endpoint anywhere",
	"answers of the program's own", "no route, no host", "malformed", "a head of more than 8 KiB",
	"a head in several segments", "a head of almost 8 KiB", "200 kB in the first write, elsewhere",
	"SYN lost", "SYN-ACK lost", "a port used again at once", "data in the SYN",
	"an endpoint with a smaller MSS", "a pod that is its own endpoint", "pipelining to one cluster",
	"the client closes", "half close after the request",
}

// TestSoftwareChecksums: every checksum is computed by the sender, changed by the program, and verified by the
// receiver. That they are verified is shown at the end, by segments that are spoiled on the way.
func TestSoftwareChecksums(t *testing.T) {
	b := newBed(t, tcx)
	for _, p := range slices.Concat(b.clients, b.pods) {
		if err := softwareChecksums(p); err != nil {
			t.Fatal(err)
		}
	}
	b.runMost(t, changed)
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("switching, v6 %v", v6), func(t *testing.T) {
			s := newScene(t, b, v6, false)
			svc, e := s.numbered(5)
			s.fail(s.run(svc, load{conns: 8, requests: many(600, 20_000), perConn: 30, next: mixed(e, 100_000)}))
		})
	}
	b.wantIdle(t)
	for _, p := range append(b.clients[:1:1], b.pods[:5]...) { // those that the load is for
		if n := tcpCounter(t, p, "InSegs"); n == 0 {
			t.Errorf("pod %s got no segment", p.Name)
		} else {
			t.Logf("pod %s got %d segments, none with a wrong checksum", p.Name, n)
		}
	}
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("spoiled, v6 %v", v6), func(t *testing.T) { spoiled(newScene(t, b, v6, false)) })
	}
	b.wantForgotten(t)
}

// spoiled fails unless the receivers find each segment that is spoiled on the way, and nobody else any.
func spoiled(s *scene) {
	svc, e := s.numbered(2)
	client, server := s.clients[0], e[1].pod
	up := s.rule(gate.Rule{Direction: gate.Up, Action: gate.Spoil, Payload: gate.With, Port: e[1].port, Skip: 3, Limit: 2})
	down := s.rule(gate.Rule{Direction: gate.Down, Action: gate.Spoil, Payload: gate.With, Port: e[1].port, Skip: 3, Limit: 2})
	before := [2]uint64{tcpCounter(s, client, "InCsumErrors"), tcpCounter(s, server, "InCsumErrors")}
	c := s.dial(svc.at)
	r := rand.New(rand.NewPCG(seed, 3))
	for i := range 6 {
		c.ask(request{method: "POST", path: "/1", body: body(20_000, r.Uint64()), do: do{Size: 20_000, Seed: uint64(i)}}, e[1])
		c.get("/0", e[0])
	}
	if nu, nd := s.acted(up), s.acted(down); nu != 2 || nd != 2 {
		s.Errorf("%d and %d segments were spoiled, want 2 each way", nu, nd)
	}
	if n := tcpCounter(s, client, "InCsumErrors") - before[0]; n != 2 {
		s.Errorf("the client found %d of 2 spoiled segments", n)
	}
	if n := tcpCounter(s, server, "InCsumErrors") - before[1]; n != 2 {
		s.Errorf("the server found %d of 2 spoiled segments", n)
	}
}

// runMost runs rows of these names in every way; all rows in the full run.
func (b *bed) runMost(t *testing.T, names []string) {
	if full {
		names = nil
	}
	t.Run("rows", func(t *testing.T) {
		families(t, func(t *testing.T, v6 bool) {
			for name, in := range map[string]where{"guess": guessed, "local": local} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					runRows(t, b, v6, in, names)
				})
			}
		})
	})
}
