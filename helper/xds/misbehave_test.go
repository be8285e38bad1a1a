// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// sender is what both kinds of streams can do for a script.
type sender struct {
	k interface{ hang(error) }
	// say sends clusters, garbled ones among them; it tells of nothing that fails.
	say func(version, nonce string, resources ...*anypb.Any)
}

// TestMisbehavingServers: whatever a server does, nothing crashes, what was good
// serves on, the status says what it was, and in the end nothing is left behind.
func TestMisbehavingServers(t *testing.T) {
	good := func(t *testing.T) *anypb.Any { return pack(t, edsCluster("good")) }
	huge := &anypb.Any{TypeUrl: ClusterType, Value: make([]byte, 2<<20)}
	tests := map[string]struct {
		// act does it, on a stream after one on which the cluster "good" was sent.
		act    func(t *testing.T, s sender)
		status []string // in the problems meanwhile; none if empty
		stays  bool     // the stream does
	}{
		"no nonce":         {act: func(t *testing.T, s sender) { s.say("2", "", good(t)) }, stays: true},
		"nonce used again": {act: func(t *testing.T, s sender) { s.say("2", "n1", good(t)); s.say("3", "n1", good(t)) }, stays: true},
		"nonce of bytes":   {act: func(t *testing.T, s sender) { s.say("2", "\x00\x01\u00ff", good(t)) }, stays: true},
		"no version":       {act: func(t *testing.T, s sender) { s.say("", "n2", good(t)) }, stays: true},
		"duplicate names": {act: func(t *testing.T, s sender) { s.say("2", "n2", good(t), good(t)) }, stays: true,
			status: []string{`Cluster "good": name: duplicate name`}},
		"garbled resource": {act: func(t *testing.T, s sender) { s.say("2", "n2", garbage(ClusterType), good(t)) }, stays: true,
			status: []string{"resources[0]", "decode"}},
		"truncated resource": {act: func(t *testing.T, s sender) {
			whole := pack(t, broken("a long name that is cut in half"))
			s.say("2", "n2", good(t), &anypb.Any{TypeUrl: ClusterType, Value: whole.Value[:len(whole.Value)/2]})
		}, stays: true, status: []string{"resources[1]", "decode"}},
		"no content": {act: func(t *testing.T, s sender) {
			s.say("2", "n2", good(t), &anypb.Any{}, &anypb.Any{TypeUrl: ClusterType})
		}, stays: true,
			status: []string{"resources[1]", "resources[2]", "no name"}},
		"type URLs of nonsense": {act: func(t *testing.T, s sender) {
			s.say("2", "n2", good(t), &anypb.Any{TypeUrl: "///"}, &anypb.Any{TypeUrl: "envoy.config.cluster.v3.Cluster."}, &anypb.Any{TypeUrl: "type.googleapis.com/"})
		}, stays: true, status: []string{"resources[1]", "resources[2]", "resources[3]", "has type"}},
		"empty envelope": {act: func(t *testing.T, s sender) {
			s.say("2", "n2", good(t), pack(t, &discoveryv3.Resource{}), pack(t, &discoveryv3.Resource{Name: "y"}))
		}, stays: true, status: []string{"resources[1]", "is empty"}},
		"time to live only": {act: func(t *testing.T, s sender) {
			s.say("2", "n2", good(t), pack(t, &discoveryv3.Resource{Name: "good", Ttl: durationpb.New(time.Second)}))
		}, stays: true},
		"huge":    {act: func(_ *testing.T, s sender) { s.say("2", "n2", huge) }, status: []string{"not connected", "larger than max"}},
		"closing": {act: func(_ *testing.T, s sender) { s.k.hang(nil) }, status: []string{"not connected", "the stream ended"}},
		"failing": {act: func(_ *testing.T, s sender) { s.k.hang(status.Error(codes.Internal, "on fire")) }, status: []string{"not connected", "on fire"}},
		"refusing": {act: func(_ *testing.T, s sender) { s.k.hang(status.Error(codes.Unauthenticated, "who are you")) },
			status: []string{"not connected", "who are you", "look at the token"}},
	}
	for _, protocol := range []Protocol{SotW, Delta} {
		for name, tc := range tests {
			t.Run(string(protocol)+"/"+name, func(t *testing.T) {
				st := newStage(t, "", grpc.MaxSendMsgSize(4<<20))
				s := client(t, protocol, func(o *ServerOptions) {
					o.MaxMessage = 1 << 20
					o.BackoffBase, o.BackoffMax = 200*time.Millisecond, 200*time.Millisecond // so that a problem can be seen
				}, st.addr)
				r := &recorder{}
				end := run(t, s, r)
				next := func() sender {
					if protocol == SotW {
						k := enter(t, st.sotw)
						return sender{k: k, say: func(version, nonce string, resources ...*anypb.Any) {
							_ = k.raw.Send(&discoveryv3.DiscoveryResponse{TypeUrl: ClusterType, VersionInfo: version, Nonce: nonce, Resources: resources})
						}}
					}
					k := enter(t, st.delta)
					return sender{k: k, say: func(version, nonce string, resources ...*anypb.Any) {
						var removed []string
						if version == "9" { // what never was any good is gone
							removed = []string{"y"}
						}
						say := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: ClusterType, SystemVersionInfo: version, Nonce: nonce, RemovedResources: removed}
						for _, a := range resources {
							envelope := &discoveryv3.Resource{Version: version, Resource: a}
							if e := (&discoveryv3.Resource{}); a.MessageIs(e) && a.UnmarshalTo(e) == nil {
								envelope = e
							}
							say.Resources = append(say.Resources, envelope)
						}
						_ = k.raw.Send(say)
					}}
				}
				script := next()
				script.say("1", "n1", good(t))
				eventually(t, "good", func() bool { return r.get("Cluster") == "good" })
				tc.act(t, script)
				if len(tc.status) > 0 {
					eventually(t, "the status says it", func() bool { return contains(problem(s), tc.status...) })
				}
				if r.get("Cluster") != "good" {
					t.Errorf("clusters %q", r.get("Cluster"))
				}
				if !tc.stays {
					script = next()
				}
				script.say("9", "n9", good(t), pack(t, edsCluster("late")))
				eventually(t, "what follows", func() bool { return r.get("Cluster") == "good,late" })
				eventually(t, "no problem is left", func() bool { return problem(s) == "" && s.Status().Connected })
				end()
				noneLeft(t)
			})
		}
	}
}

// TestMisbehavingFlapping: a server that comes and goes, and one that never lets go.
func TestMisbehavingFlapping(t *testing.T) {
	st := newStage(t, "")
	s, r := client(t, Delta, nil, st.addr), &recorder{}
	end := run(t, s, r)
	for i := range 30 {
		k := enter(t, st.delta)
		switch i % 3 {
		case 0:
			k.say(deltaSay(t, ClusterType, strconv.Itoa(i), edsCluster("a")))
		case 1:
			k.say(deltaSay(t, ClusterType, strconv.Itoa(i)))
		}
		k.hang(status.Error(codes.Unavailable, "again"))
	}
	if r.get("Cluster") != "a" {
		t.Errorf("clusters %q", r.get("Cluster"))
	}
	addr := st.addr
	for range 5 {
		st.grpc.Stop()
		st = newStage(t, addr)
		enter(t, st.delta).say(deltaSay(t, ClusterType, "1", edsCluster("a")))
	}
	eventually(t, "connected", func() bool { return s.Status().Connected })
	end()
	noneLeft(t)
}

// TestMisbehavingSlow: a response that trickles, byte by byte, arrives.
func TestMisbehavingSlow(t *testing.T) {
	st := newStage(t, "")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := net.Dial("tcp", st.addr)
		if err != nil {
			return
		}
		defer out.Close()
		go func() { _, _ = io.Copy(out, in) }()
		buf := make([]byte, 1)
		for {
			if _, err := out.Read(buf); err != nil {
				return
			}
			if _, err := in.Write(buf); err != nil {
				return
			}
		}
	}()
	s, r := client(t, Delta, nil, ln.Addr().String()), &recorder{}
	end := run(t, s, r)
	enter(t, st.delta).say(deltaSay(t, ClusterType, "1", edsCluster("a"), edsCluster("b")))
	eventually(t, "both", func() bool { return r.get("Cluster") == "a,b" })
	end()
	noneLeft(t)
}

// TestMisbehavingBytes: what is no gRPC at all, or ends in the middle of it, is a
// connection that is down.
func TestMisbehavingBytes(t *testing.T) {
	settings := []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}                                             // an empty HTTP/2 SETTINGS frame
	headers := append([]byte{0, 0, 1, 1, 4, 0, 0, 0, 1}, 0x88)                                // HEADERS of stream 1: ":status: 200"
	half := append([]byte{0, 0, 10, 0, 0, 0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff}, "abcde"...) // DATA with a message of 4 GiB
	for name, data := range map[string][]byte{
		"nothing":         {},
		"text":            []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
		"noise":           bytes.Repeat([]byte{0xde, 0xad, 0xbe, 0xef}, 1000),
		"half a frame":    settings[:5],
		"half a response": bytes.Join([][]byte{settings, headers, half[:12]}, nil),
		"too much":        bytes.Join([][]byte{settings, headers, half}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			accepted := 0
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					mu.Lock()
					accepted++
					mu.Unlock()
					go func() {
						defer conn.Close()
						_, _ = conn.Write(data)
						_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
						_, _ = io.Copy(io.Discard, conn)
					}()
				}
			}()
			s, r := client(t, Delta, nil, ln.Addr().String()), &recorder{}
			end := run(t, s, r)
			eventually(t, "it is tried again", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return accepted > 3
			})
			eventually(t, "the status says so", func() bool { return contains(problem(s), "not connected") })
			if s.Status().Connected || r.count() != 0 {
				t.Error("something was taken for an answer")
			}
			end()
			ln.Close()
			noneLeft(t)
		})
	}
}
