// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"kmesh/helper/pods"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// A pod that opts out drains: what is open goes on governed, by connection and by request,
// what is new is not governed, and the programs go when the last of it has ended.
func TestOptOutDrains(t *testing.T) {
	b := newBed(t, node.Options{})
	p := b.pod(node.PodSpec{Name: "client", Annotations: node.Enrolled()})
	b.tell(apiPod(p, p.Annotations))
	k := b.start()

	kept, err := p.Dial(b.ctx, wire.Dial{Network: wire.TCP, Addr: echoVIP, Keep: true})
	if err != nil || kept.Server != "echo" {
		t.Fatalf("%+v, %v", kept, err)
	}
	web, _, err := p.Conn(b.ctx, dialWeb)
	if err != nil || web == nil {
		t.Fatal(err)
	}
	defer web.Close()
	replies := bufio.NewReader(web)
	get(t, web, replies, "/before")

	b.tell(apiPod(p, nil))
	// First the event: to see whether a pod is governed takes a connection more.
	if e := b.event(p, pods.Draining); !strings.HasSuffix(e.Message, ": 2") {
		t.Errorf("event says %q, want that 2 are open", e.Message)
	}
	b.governed(p, false)
	b.planned(k, p, "open: 2")
	// Both are governed still: the address is the service's, and a request is routed.
	for range 3 {
		res, err := p.Exchange(b.ctx, wire.Exchange{Handle: kept.Handle})
		if err != nil || res.Server != "echo" || res.Peer != echoVIP {
			t.Errorf("the open connection answers %+v, %v", res, err)
		}
		get(t, web, replies, "/during")
	}
	if n := b.links(p); n == 0 {
		t.Error("the programs are gone while connections are open")
	}
	all, err := b.netns.List(b.ctx)
	if err != nil || len(all) != 1 || !all[0].Draining || !all[0].Live() {
		t.Errorf("the kernel has %+v, %v: want one pod, draining, without drift", all, err)
	}

	// Taken back, and again.
	b.tell(apiPod(p, node.Enrolled()))
	b.governed(p, true)
	b.event(p, pods.Enrolled)
	get(t, web, replies, "/again")
	b.tell(apiPod(p, map[string]string{node.EnrollAnnotation: "false"}))
	b.governed(p, false)

	if err := p.Hangup(b.ctx, kept.Handle); err != nil {
		t.Fatal(err)
	}
	b.planned(k, p, "open: 1")
	get(t, web, replies, "/still")
	if b.links(p) == 0 {
		t.Error("the programs are gone while a connection is open")
	}
	web.Close()
	took := b.eventually("links of the pod", func() error {
		if n := b.links(p); n != 0 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	t.Logf("let go %v after the last connection's end", took)
	b.event(p, pods.Released)
	b.governed(p, false)
	if all, err := b.netns.List(b.ctx); err != nil || len(all) != 0 {
		t.Errorf("there is left %+v, %v", all, err)
	}
	if len(k.Plans()) != 0 {
		t.Errorf("plans for a pod that is let go: %+v", k.Plans())
	}

	// And in once more, late.
	b.tell(apiPod(p, node.Enrolled()))
	b.governed(p, true)
	b.event(p, pods.EnrolledLate)
	b.forget(p)
}

// UDP has no connections that end: a connected socket keeps its endpoint until it is closed,
// and each other datagram is as the pod is when it is sent.
func TestOptOutDrainsUDP(t *testing.T) {
	b := newBed(t, node.Options{})
	p := b.pod(node.PodSpec{Name: "client", Annotations: node.Enrolled()})
	b.tell(apiPod(p, p.Annotations))
	k := b.start()
	dial := func(unconnected bool) wire.Result {
		t.Helper()
		res, err := p.Dial(b.ctx, wire.Dial{Network: wire.UDP, Addr: udpVIP, Keep: true, Unconnected: unconnected, Timeout: time.Second})
		if err != nil || res.Server != "echo" || res.Peer != udpVIP {
			t.Fatalf("%+v, %v", res, err)
		}
		return res
	}
	connected, loose := dial(false), dial(true)
	b.tell(apiPod(p, nil))
	b.event(p, pods.Draining)
	if res, err := p.Exchange(b.ctx, wire.Exchange{Handle: connected.Handle}); err != nil || res.Server != "echo" || res.Peer != udpVIP {
		t.Errorf("the connected socket answers %+v, %v", res, err)
	}
	if res, err := p.Exchange(b.ctx, wire.Exchange{Handle: loose.Handle, Timeout: 300 * time.Millisecond}); err != nil || res.Errno == "" {
		t.Errorf("a datagram of a pod that opted out: %+v, %v; want that nobody answers", res, err)
	}
	b.planned(k, p, "open: 1")
	if err := p.Hangup(b.ctx, connected.Handle); err != nil {
		t.Fatal(err)
	}
	b.event(p, pods.Released)
	if n := b.links(p); n != 0 {
		t.Errorf("%d links are left", n)
	}
}

// get makes one request on an open connection.
func get(t *testing.T, c net.Conn, replies *bufio.Reader, path string) {
	t.Helper()
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	res, err := http.ReadResponse(replies, nil)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != http.StatusOK || string(body) != path {
		t.Fatalf("GET %s: %s %q, %v", path, res.Status, body, err)
	}
}

var dialWeb = wire.Dial{Network: wire.TCP, Addr: webVIP}
