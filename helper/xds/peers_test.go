// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestDutyFallbackAndReturn: servers are used in their order, one at a time; the
// preferred one is returned to as soon as it answers; no version of one is claimed
// at another.
func TestDutyFallbackAndReturn(t *testing.T) {
	for _, protocol := range []Protocol{SotW, Delta} {
		t.Run(string(protocol), func(t *testing.T) {
			first, second := newStage(t, ""), newStage(t, "")
			s, r := client(t, protocol, nil, first.addr, second.addr), wantsEach()
			end := run(t, s, r)
			// versions are what the first request for clusters claims.
			play := func(st *stage, version string, names ...string) (versions map[string]string) {
				t.Helper()
				if protocol == SotW {
					k := enter(t, st.sotw)
					q := k.next()
					say := sotwSay(t, ClusterType, version)
					for _, n := range names {
						say.Resources = append(say.Resources, pack(t, edsCluster(n)))
					}
					k.say(say)
					return map[string]string{"": q.GetVersionInfo()}
				}
				k := enter(t, st.delta)
				q := k.next()
				say := deltaSay(t, ClusterType, version)
				have := map[string]bool{}
				for _, n := range names {
					have[n] = true
					say.Resources = append(say.Resources, &discoveryv3.Resource{Name: n, Version: version, Resource: pack(t, edsCluster(n))})
				}
				for n := range q.GetInitialResourceVersions() {
					if !have[n] {
						say.RemovedResources = append(say.RemovedResources, n)
					}
				}
				k.say(say)
				return q.GetInitialResourceVersions()
			}
			play(first, "1", "a", "b")
			eventually(t, "the first serves", func() bool { return r.get("Cluster") == "a,b" && s.Status().Source == first.addr })
			first.grpc.Stop()
			claimed := play(second, "7", "b", "c")
			for n, v := range claimed {
				if v == "1" {
					t.Errorf("the version of another server is claimed: %q %q", n, v)
				}
			}
			if protocol == Delta && len(claimed) != 2 {
				t.Errorf("claims %v: what is held must be named, or its removal is not told", claimed)
			}
			eventually(t, "the second serves, as a whole", func() bool { return r.get("Cluster") == "b,c" && s.Status().Source == second.addr })
			if !contains(problem(s), first.addr, "does not answer", second.addr) {
				t.Errorf("problems %s", problem(s))
			}
			first = newStage(t, first.addr)
			play(first, "probe", "x") // the look whether it answers
			if got := r.get("Cluster"); got != "b,c" && got != "a" {
				t.Errorf("clusters %q", got)
			}
			play(first, "2", "a")
			eventually(t, "the first again", func() bool { return r.get("Cluster") == "a" && s.Status().Source == first.addr && s.Status().Connected })
			if p := problem(s); p != "" {
				t.Errorf("problems %s", p)
			}
			end()
			noneLeft(t)
		})
	}
}

// TestDutyFallbackWaits: while there is something to serve, a short absence of the
// preferred server is no reason to ask another one; a server that takes streams and
// does not answer is one that is away.
func TestDutyFallbackWaits(t *testing.T) {
	t.Run("short absence", func(t *testing.T) {
		first, second := newStage(t, ""), newStage(t, "")
		s, r := client(t, Delta, func(o *ServerOptions) { o.FallbackAfter = time.Hour }, first.addr, second.addr), &recorder{}
		run(t, s, r)
		enter(t, first.delta).say(deltaSay(t, ClusterType, "1", edsCluster("a")))
		eventually(t, "serves", func() bool { return r.get("Cluster") == "a" })
		first.grpc.Stop()
		eventually(t, "the loss is told", func() bool { return contains(problem(s), first.addr, "refused") })
		first = newStage(t, first.addr)
		enter(t, first.delta).say(deltaSay(t, ClusterType, "2", edsCluster("b")))
		eventually(t, "serves", func() bool { return r.get("Cluster") == "a,b" })
		if len(second.delta) != 0 {
			t.Error("the second was asked")
		}
	})
	t.Run("silent", func(t *testing.T) {
		first, second := newStage(t, ""), newStage(t, "")
		s, r := client(t, Delta, func(o *ServerOptions) { o.AnswerWithin = 50 * time.Millisecond }, first.addr, second.addr), &recorder{}
		run(t, s, r)
		enter(t, first.delta)
		enter(t, second.delta).say(deltaSay(t, ClusterType, "1", edsCluster("a")))
		eventually(t, "the second serves", func() bool { return r.get("Cluster") == "a" && s.Status().Source == second.addr })
	})
	t.Run("none", func(t *testing.T) {
		first, second := newStage(t, ""), newStage(t, "")
		first.grpc.Stop()
		second.grpc.Stop()
		s, r := client(t, Delta, nil, first.addr, second.addr), &recorder{}
		run(t, s, r)
		eventually(t, "both were tried", func() bool { return contains(problem(s), first.addr, second.addr) })
		second = newStage(t, second.addr)
		enter(t, second.delta).say(deltaSay(t, ClusterType, "1", edsCluster("a")))
		eventually(t, "the second serves", func() bool { return r.get("Cluster") == "a" })
	})
}

// gate is a consumer that can be held in Apply.
type gate struct {
	recorder
	open    chan struct{}
	entered atomic.Int32
}

func (g *gate) Apply(ctx context.Context, updates ...Update) error {
	g.entered.Add(1)
	<-g.open
	return g.recorder.Apply(ctx, updates...)
}

// TestDutyFlowControl: the next response is not read before the one before it is
// handed over, so a server cannot fill our memory.
func TestDutyFlowControl(t *testing.T) {
	st := newStage(t, "")
	s, g := client(t, Delta, nil, st.addr), &gate{open: make(chan struct{})}
	run(t, s, g)
	var once sync.Once
	release := func() { once.Do(func() { close(g.open) }) }
	t.Cleanup(release)
	k := enter(t, st.delta)
	const responses, size = 200, 1 << 20
	var sent atomic.Int32
	done := make(chan error, 1)
	go func() {
		for range responses {
			say := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: ListenerType, SystemVersionInfo: "1", Nonce: strings.Repeat("n", 100),
				Resources: []*discoveryv3.Resource{{Name: "x", Version: "1", Resource: &anypb.Any{TypeUrl: ListenerType, Value: make([]byte, size)}}}}
			if err := k.raw.Send(say); err != nil {
				done <- err
				return
			}
			sent.Add(1)
		}
		done <- nil
	}()
	eventually(t, "the first is being applied", func() bool { return g.entered.Load() == 1 })
	// The server comes to a stop: nothing more is sent for a while.
	last, since := sent.Load(), time.Now()
	eventually(t, "the server has to wait", func() bool {
		if n := sent.Load(); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 200*time.Millisecond
	})
	if last > responses/4 || g.entered.Load() != 1 {
		t.Errorf("%d of %d MiB were taken, %d applied, while the first was", last, responses, g.entered.Load())
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are applied", func() bool { return g.entered.Load() == responses })
}

// TestDutyBoundedQueues: a server that sends without ever reading gets no more than
// so many requests in memory, and does not keep us from reading until then.
func TestDutyBoundedQueues(t *testing.T) {
	ss := &session{unsent: make(chan proto.Message, unsentMost), broken: make(chan struct{})}
	for i := range unsentMost {
		if err := ss.post(t.Context(), &discoveryv3.DiscoveryRequest{}); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	go cancel(why)
	if err := ss.post(ctx, &discoveryv3.DiscoveryRequest{}); !errors.Is(err, why) {
		t.Errorf("one more: %v", err)
	}
	close(ss.broken)
	if err := ss.post(t.Context(), &discoveryv3.DiscoveryRequest{}); err != nil {
		t.Errorf("on a broken stream: %v", err) // what is received says why
	}
}

// deaf passes bytes on until it is told not to, and then neither reads nor closes.
func deaf(t *testing.T, to string) (addr string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	var silent atomic.Bool
	pass := func(dst, src net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			if silent.Load() {
				continue // swallowed, as by a machine that has gone away
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			if silent.Load() {
				t.Cleanup(func() { in.Close() })
				continue
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			go pass(out, in)
			go pass(in, out)
		}
	}()
	return ln.Addr().String(), func() { silent.Store(true) }
}

// TestDutyKeepalive: a connection that is half open is found out. The gRPC library
// allows no less than 10 s between two signs of life.
func TestDutyKeepalive(t *testing.T) {
	t.Parallel()
	st := newStage(t, "")
	addr, stop := deaf(t, st.addr)
	s, r := client(t, Delta, func(o *ServerOptions) { o.Keepalive = 10 * time.Second }, addr), &recorder{}
	run(t, s, r)
	enter(t, st.delta).say(deltaSay(t, ClusterType, "1", edsCluster("a")))
	eventually(t, "serves", func() bool { return r.get("Cluster") == "a" })
	stop()
	deadline := time.Now().Add(60 * time.Second)
	for s.Status().Connected {
		if time.Now().After(deadline) {
			t.Fatal("not found out within a minute")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if p := problem(s); !contains(p, "keepalive") {
		t.Errorf("problems %s", p)
	}
	if r.get("Cluster") != "a" {
		t.Error("the cluster is gone")
	}
}
