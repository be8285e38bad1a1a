// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/test/l7/gate"
)

// What two pods of a node share, and what neither may notice of it.

// poisoned is what a hold that was given up has in it (bpf.LoadOptions, PoisonHolds).
const poisoned = 0xdb

// recorder answers each request with its own head, and keeps everything that it gets.
type recorder struct {
	mu  sync.Mutex
	got bytes.Buffer
}

func (r *recorder) talk(c *net.TCPConn, e *server) {
	var head []byte
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		r.mu.Lock()
		r.got.Write(b[:n])
		r.mu.Unlock()
		for head = append(head, b[:n]...); ; {
			one, rest, whole := bytes.Cut(head, []byte("\r\n\r\n"))
			if !whole {
				break
			}
			if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Server: %s\r\nContent-Length: %d\r\n\r\n%s", e.name, len(one), one); err != nil {
				return
			}
			head = bytes.Clone(rest)
		}
		if err != nil {
			return
		}
	}
}

// TestHoldsOfTwoPods: two pods hold heads in a pool that is much too small for both. Each request is made of a letter
// that is the pod's own, so a byte of the other's, or of a hold that nobody has, is seen wherever it comes out.
func TestHoldsOfTwoPods(t *testing.T) {
	const pool = 8
	b := newBedOf(t, tcx, false, map[string]uint32{"km_holds": pool, "km_free_holds": pool})
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) { shareHolds(newScene(t, b, v6, v6)) })
	}
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("without a hold, v6 %v", v6), func(t *testing.T) { withoutHold(newScene(t, b, v6, false), pool) })
	}
	b.wantIdle(t)
	var limits bpf.Limits
	if err := b.rt.Map("km_limits").Lookup(uint32(0), &limits); err != nil {
		t.Fatal(err)
	}
	free := pool - min(limits.NextHold, pool) // were never used
	for q := b.rt.Map("km_free_holds"); ; free++ {
		var slot uint32
		if err := q.LookupAndDelete(nil, &slot); err != nil {
			break
		}
	}
	if free != pool {
		t.Errorf("%d of %d holds are free when all is over", free, pool)
	}
}

func shareHolds(s *scene) {
	before := s.bed.events(s.T)
	var recorders [2]recorder
	var errs sync.Map
	letters := [2]string{"A", "B"}
	var svcs [2]*service
	for i := range svcs {
		e := []*server{s.raw(2*i, recorders[i].talk), s.raw(2*i+1, recorders[i].talk)}
		moved := &mesh.Route{Name: "moved", Match: prefixed("/moved"), Redirect: &mesh.Redirect{Status: 302, Prefix: "/to"}}
		svcs[i] = s.serve(moved, s.to("/b", e[1]), s.to("/", e[0]))
	}
	var wg sync.WaitGroup
	for client, svc := range svcs {
		for k := range many(16, 48) {
			c := s.dialAs(svc.at, how{client: client})
			wg.Go(func() {
				if err := c.holdAndAsk(letters[client], letters[1-client], rand.New(rand.NewPCG(seed, uint64(2*k+client)))); err != nil {
					errs.Store(fmt.Sprintf("pod %d, connection %d", client, k), err)
				}
			})
		}
	}
	wg.Wait()
	errs.Range(func(k, v any) bool {
		s.Errorf("seed %#x: %v: %v", seed, k, v)
		return true
	})
	s.logEvents(before)
	if s.bed.events(s.T)[holdFull] == before[holdFull] {
		s.Error("the pool was never exhausted")
	}
	for i := range recorders {
		r := &recorders[i]
		r.mu.Lock()
		got := r.got.Bytes()
		if n := bytes.Count(got, []byte(letters[1-i])); n > 0 {
			s.Errorf("the servers of pod %d got %d bytes of the other pod", i, n)
		}
		if n := bytes.Count(got, []byte{poisoned}); n > 0 {
			s.Errorf("the servers of pod %d got %d bytes of a hold that was given up", i, n)
		}
		if bytes.Count(got, []byte(letters[i])) == 0 {
			s.Errorf("the servers of pod %d got nothing of their own", i)
		}
		r.mu.Unlock()
	}
	// Both recover: nothing is held any more, so nothing waits for a timer.
	for client, svc := range svcs {
		s.quick(4, "a head in two parts, after it all", func() {
			c := s.dialAs(svc.at, how{client: client})
			c.write("GET /b HTTP/1.1\r\n")
			time.Sleep(pause)
			c.write("Host: the-host\r\n\r\n")
			if r := c.read(http.MethodGet); r.StatusCode != http.StatusOK {
				s.Errorf("status %d", r.StatusCode)
			}
			c.Close()
		})
	}
}

// withoutHold lets one pod take every hold. The other's requests are served as ever, if more slowly: what opens a leg is
// repeated by the client when the leg is there.
func withoutHold(s *scene, pool int) {
	svc, e := s.numbered(3)
	moved := &mesh.Route{Name: "moved", Match: prefixed("/moved"), Redirect: &mesh.Redirect{Status: 302, Prefix: "/to"}}
	svc.update(moved, s.to("/1", e[1]), s.to("/2", e[2]), s.to("/", e[0]))
	before := s.bed.events(s.T)
	for range pool {
		c := s.dialAs(svc.at, how{client: 1})
		c.write("GET / HTTP/1.1\r\n")
		defer c.reset()
	}
	eventually(s.T, "holds in use", func() int {
		return len(s.flows(func(f *bpf.Flow) bool { return f.State == bpf.FlowOpen && f.Hold != 0 && s.owns(f) }))
	}, func(n int) bool { return n == pool })
	c := s.dial(svc.at)
	for i := range 3 {
		c.refused(request{path: "/moved/x"}.String(), http.StatusFound)
		c.get(fmt.Sprintf("/%d", i), e[i])
	}
	if s.bed.events(s.T)[holdFull] == before[holdFull] {
		s.Error("a hold was free")
	}
}

// holdAndAsk makes some requests whose heads come in parts, and may leave in the middle of one. Everything that comes back
// has to be its own.
func (c *conn) holdAndAsk(own, other string, r *rand.Rand) error {
	defer c.Close()
	for i := range 4 {
		path := []string{"/", "/b/", "/moved/"}[r.IntN(3)]
		text := fmt.Sprintf("GET %s%s HTTP/1.1\r\nHost: the-host\r\nX-%s: %s\r\n\r\n", path, strings.Repeat(own, 1+r.IntN(200)), own, strings.Repeat(own, r.IntN(4000)))
		parts := cut(text, 4+r.IntN(len(text)-4))
		if i == 3 && r.IntN(2) == 0 {
			_, err := io.WriteString(c.TCPConn, parts[0])
			time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
			c.reset() // with the head in the hold
			return err
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // what finds no hold waits for a timer
		for _, part := range parts {
			if _, err := io.WriteString(c.TCPConn, part); err != nil {
				return err
			}
			time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
		}
		rep, err := readReply(c.r, http.MethodGet)
		if err != nil {
			return fmt.Errorf("request %d, %s of %d bytes: %w", i, path, len(text), err)
		}
		all := rep.Header.Get("Location") + string(rep.body)
		if strings.Contains(all, other) || strings.IndexByte(all, poisoned) >= 0 {
			return fmt.Errorf("request %d: the answer has bytes that are not its own: %q", i, all)
		}
		want := http.StatusOK
		if path == "/moved/" {
			want = http.StatusFound
		}
		if rep.StatusCode != want || want == http.StatusOK && string(rep.body) != strings.TrimSuffix(text, "\r\n\r\n") {
			return fmt.Errorf("request %d, %s of %d bytes: status %d with %d bytes", i, path, len(text), rep.StatusCode, len(rep.body))
		}
	}
	return nil
}

// spoof: a pod that sends segments with the addresses and ports of another pod's connection reaches nothing of it.
func spoof(s *scene) {
	svc, e := s.abcd()
	port := s.freePort()
	victim, attacker := s.dialAs(svc.at, how{bind: port}), s.clients[1]
	own := s.dialAs(svc.at, how{client: 1, bind: port}) // of the attacker, from the same port
	for i, path := range []string{"/", "/b", "/c"} {
		victim.get(path, e[i])
		own.get(path, e[i])
	}
	time.Sleep(60 * time.Millisecond) // the last delayed ACK
	flow := func() *bpf.Flow {
		all := s.flows(func(f *bpf.Flow) bool {
			return f.State == bpf.FlowOpen && swap16(f.Key.ClientPort) == port && s.owns(f) && f.Key.Pod == s.cookie(victim)
		})
		if len(all) != 1 {
			s.Fatalf("the victim has %d flows, want 1", len(all))
		}
		f := *all[0]
		return &f
	}
	was, events := flow(), s.bed.events(s.T)

	client, leg := netip.AddrPortFrom(addrOf(s.clients[0], s.v6), port), was.Legs[was.Leg]
	// As the victim sends it: to the service, every number right.
	for _, f := range []forged{
		{flags: gate.SYN, seq: 1},
		{flags: gate.SYN, seq: was.ClientEnd},
		{flags: gate.ACK, seq: was.ClientEnd, ack: was.ServerEnd, payload: "GET /d HTTP/1.1\r\nHost: the-host\r\n\r\n"},
		{flags: gate.ACK, seq: was.ClientEnd, ack: was.ServerEnd, payload: "GET /d HTT"},
		{flags: gate.ACK | gate.FIN, seq: was.ClientEnd, ack: was.ServerEnd},
		{flags: gate.RST, seq: was.ClientEnd},
		{flags: gate.RST | gate.ACK, seq: was.ClientEnd, ack: was.ServerEnd},
	} {
		f.src, f.dst = client, svc.at
		s.forge(attacker, nil, f)
	}
	now := flow()
	now.Busy, now.Seen = was.Busy, was.Seen
	if *now != *was {
		s.Errorf("the victim's flow is another one:\n%s\nwas\n%s", flowLine(now), flowLine(was))
	}
	// As it goes to the endpoint, but for the numbers: the endpoint answers the victim, who may find it strange.
	for _, f := range []forged{
		{flags: gate.SYN, seq: 1},
		{flags: gate.ACK, seq: leg.Sent + 1<<30, ack: leg.Nxt, payload: "GET /d HTTP/1.1\r\nHost: the-host\r\n\r\n"},
		{flags: gate.RST, seq: leg.Sent + 1<<30},
	} {
		f.src, f.dst = netip.AddrPortFrom(client.Addr(), swap16(leg.LegPort)), e[2].addr(s.v6)
		s.forge(attacker, e[2].pod, f)
	}
	now = flow()
	for i := range was.Legs {
		a, b := now.Legs[i], was.Legs[i]
		a.Window = b.Window
		if a != b {
			s.Errorf("leg %d of the victim is another one: %+v, was %+v", i, a, b)
		}
	}
	if now.Requests != was.Requests || now.Rebinds != was.Rebinds || now.ClientEnd != was.ClientEnd || now.ServerEnd != was.ServerEnd || now.State != was.State {
		s.Errorf("the victim's flow is another one:\n%s\nwas\n%s", flowLine(now), flowLine(was))
	}
	for i, n := range s.bed.events(s.T) {
		if n != events[i] {
			s.Errorf("event %v: %d", bpf.Event(i), n-events[i])
		}
	}
	s.wantServed(e, 2, 2, 2, 0)
	for i, path := range []string{"/", "/b", "/c", "/d"} {
		victim.get(path, e[i])
		own.get(path, e[i])
	}
}

// cookie is what the program knows the pod of a connection by.
func (s *scene) cookie(c *conn) uint64 {
	s.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		s.Fatal(err)
	}
	var cookie uint64
	if cerr := rc.Control(func(fd uintptr) { cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE) }); cerr != nil || err != nil {
		s.Fatalf("SO_NETNS_COOKIE: %v %v", cerr, err)
	}
	return cookie
}
