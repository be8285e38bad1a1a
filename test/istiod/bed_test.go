// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	api "kmesh/helper/api/v1"
	"kmesh/test/istiod/control"
	"kmesh/test/node"
	"kmesh/test/node/wire"
	"kmesh/test/plane"
)

// settled is how long a change may take from the API server to the kernel, on a machine that others use too: longer than
// the helper waits between two tries to reach istiod.
const settled = time.Minute

// serverPort is where every server of the tests listens.
const serverPort = 8080

// bed is a node, and its mesh's control plane.
type bed struct {
	*testing.T
	ctx    context.Context
	n      *node.Node
	c      *control.Control
	helper *node.Helper
}

func newBed(t *testing.T) *bed {
	t.Helper()
	n := node.ForTest(t, node.Options{})
	return &bed{T: t, ctx: t.Context(), n: n, c: control.ForTest(t, n)}
}

// run is Run of a test that works on the same bed.
func (b *bed) run(name string, f func(b *bed)) {
	b.Run(name, func(t *testing.T) {
		sub := *b
		sub.T = t
		f(&sub)
	})
}

// apply gives objects to the API server.
func (b *bed) apply(text string) {
	b.Helper()
	objects, err := plane.Objects([]byte(text))
	if err == nil {
		err = b.c.Apply(b.ctx, objects, false)
	}
	if err != nil {
		b.Fatalf("applying objects: %v", err)
	}
}

// startHelper starts the helper, and waits until it is ready. A test that fails shows what it had to say.
func (b *bed) startHelper(more ...string) {
	b.Helper()
	h, err := b.n.StartHelper(b.ctx, append(b.c.HelperArgs(), more...)...)
	if err != nil {
		b.Fatal(err)
	}
	b.helper = h
	b.Cleanup(func() {
		if b.Failed() {
			log, err := os.ReadFile(h.LogPath)
			b.Logf("the helper's log (%v):\n%s", err, log[max(0, len(log)-8192):])
		}
	})
}

// labels are a pod's.
type labels = map[string]string

// server makes a pod with an HTTP server that answers every request with the pod's name. It is not enrolled.
func (b *bed) server(namespace, name string, l labels) *node.Pod {
	b.Helper()
	p, err := b.c.AddPod(b.ctx, node.PodSpec{Namespace: namespace, Name: name}, control.PodOptions{Labels: l})
	if err != nil {
		b.Fatal(err)
	}
	b.serve(p)
	return p
}

// outside makes the same without the API server's knowledge: a machine beside the cluster.
func (b *bed) outside(name string) *node.Pod {
	b.Helper()
	p, err := b.n.AddPod(b.ctx, node.PodSpec{Name: name})
	if err != nil {
		b.Fatal(err)
	}
	b.serve(p)
	return p
}

func (b *bed) serve(p *node.Pod) {
	b.Helper()
	var l net.Listener
	err := p.Do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", serverPort))
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, p.Name) })}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })
}

// client makes an enrolled pod.
func (b *bed) client(namespace, name string, opts control.PodOptions) *node.Pod {
	b.Helper()
	p, err := b.c.AddPod(b.ctx, node.PodSpec{Namespace: namespace, Name: name, Annotations: node.Enrolled()}, opts)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// request is what a client asks for.
type request struct {
	at      string // ADDRESS:PORT that it connects to
	host    string
	path    string
	headers map[string]string
}

func (q request) String() string {
	text := "http://" + q.host + q.path + " at " + q.at
	for _, name := range slices.Sorted(maps.Keys(q.headers)) {
		text += " " + name + ": " + q.headers[name]
	}
	return text
}

// ask makes a request from a pod, over a connection of its own. The answer is the server's name, the status with its
// Location if it is another than 200, or what went wrong.
func (b *bed) ask(p *node.Pod, q request) string {
	b.Helper()
	conns, errno := b.conns(p, q.at)
	defer conns.CloseIdleConnections()
	return b.over(conns, errno, q)
}

// conns makes connections from a pod to an address as they are needed. What a system call said is in errno.
func (b *bed) conns(p *node.Pod, at string) (conns *http.Transport, errno *string) {
	errno = new(string)
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, res, err := p.Conn(ctx, wire.Dial{Network: wire.TCP, Addr: at, Timeout: 5 * time.Second})
		if err != nil {
			return nil, err
		}
		if conn == nil {
			*errno = res.Call + " " + res.Errno
			return nil, errors.New(*errno)
		}
		return conn, nil
	}}, errno
}

func (b *bed) over(conns *http.Transport, errno *string, q request) string {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	path := q.path
	if path == "" {
		path = "/"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+q.host+path, nil)
	if err != nil {
		b.Fatal(err)
	}
	for name, value := range q.headers {
		req.Header.Set(name, value)
	}
	resp, err := conns.RoundTrip(req)
	switch {
	case err != nil && *errno != "":
		return *errno
	case err != nil:
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err.Error()
	case resp.StatusCode != http.StatusOK:
		return strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Location")))
	}
	return string(body)
}

// want waits until the answer to a request is as it should be.
func (b *bed) want(p *node.Pod, q request, want string) {
	b.Helper()
	b.until(fmt.Sprintf("%s asks for %s", p.Name, q), func() error {
		if got := b.ask(p, q); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

// until polls, and ends the test when the time is over.
func (b *bed) until(what string, ask func() error) {
	b.Helper()
	if err := control.Until(b.ctx, settled, what, func(context.Context) error { return ask() }); err != nil {
		if status, serr := b.n.Kmeshctl(b.ctx, "status"); serr == nil {
			b.Logf("%s", status)
		}
		b.Fatal(err)
	}
}

// shares makes n requests, each over a connection of its own, and counts who answered.
func (b *bed) shares(p *node.Pod, q request, n int) map[string]int {
	b.Helper()
	got := map[string]int{}
	for range n {
		got[b.ask(p, q)]++
	}
	return got
}

// service is a service and its endpoints, which a controller would make. The port's name says what it speaks; an empty
// one leaves that to the first bytes.
func service(namespace, name, ip, portName string, port int, pods ...*node.Pod) string {
	text := fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: %[1]s}
spec: {clusterIP: %[3]s, ports: [{name: %[4]q, port: %[5]d, targetPort: %[6]d}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[2]s-1, namespace: %[1]s, labels: {kubernetes.io/service-name: %[2]s}}
addressType: IPv4
ports: [{name: %[4]q, port: %[6]d, protocol: TCP}]
endpoints:
`, namespace, name, ip, portName, port, serverPort)
	for _, p := range pods {
		text += fmt.Sprintf("- {addresses: [%s], conditions: {ready: true}, targetRef: {kind: Pod, name: %s, namespace: %s}}\n", p.IP4, p.Name, p.Namespace)
	}
	return text
}

// status is what the helper says of itself.
func (b *bed) status() (*api.StatusResponse, error) {
	out, err := b.n.Kmeshctl(b.ctx, "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	status := &api.StatusResponse{}
	return status, protojson.Unmarshal(out, status)
}
